"""Routing by the OpenAI `model`: which endpoint a client's model means, and which models it is told of.

A host that several endpoints share asks the body, or the query of a request without one (`?model=`, as OpenAI's
realtime API has it). Everything happens within the environment of the client's token: what others have does not
exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import msgspec

from router.body_head import MAX_HEAD_BYTES
from router.errors import Kind, ProxyError, Source
from router.local_reply import json_reply
from router.routing.credentials import ANYBODY

if TYPE_CHECKING:
    from router.http import RequestShape, ResponseHead
    from router.routing.credentials import Credential
    from router.routing.table import Endpoint, Table

MODELS_PATH = b"/v1/models"
MAX_QUERY_FIELDS = 64
_MISSING = ProxyError(
    Kind.MODEL_MISSING, Source.DOWNSTREAM,
    detail=f"`model` is no text at the top level of the JSON in the first {MAX_HEAD_BYTES} bytes",
)  # fmt: skip
_NOT_FOUND = ProxyError(Kind.MODEL_NOT_FOUND, Source.DOWNSTREAM)
UNKNOWN_CLIENT = ProxyError(Kind.UNAUTHENTICATED, Source.DOWNSTREAM)


def is_model_list(shape: RequestShape) -> bool:
    """Whether a request asks for the models there are."""
    return shape.path.partition(b"?")[0] == MODELS_PATH and shape.method in (b"GET", b"HEAD")


def model_of_query(path: bytes) -> str | None:
    """Return the `model` of a target's query."""
    try:
        fields = parse_qsl(path.partition(b"?")[2].decode(), max_num_fields=MAX_QUERY_FIELDS)
    except ValueError:  # UnicodeDecodeError among them
        return None
    return next((value for name, value in fields if name == "model"), None)


def find_serving(table: Table, credential: Credential, model: str | None) -> Endpoint | ProxyError:
    """Return the endpoint of a client's environment that serves a model, or the error for it."""
    if model is None:
        return _MISSING
    endpoint = table.serving(credential.environment, model)
    if endpoint is not None and _may_know(credential, endpoint):
        return endpoint
    # Somebody without a token may be somebody's client who forgot it.
    return UNKNOWN_CLIENT if credential is ANYBODY and len(table.credentials) else _NOT_FOUND


def is_stranger(table: Table, credential: Credential) -> bool:
    """Whether nothing here can be meant for a client, whatever the body says."""
    if credential is not ANYBODY or not len(table.credentials):
        return False
    return not table.models.is_open(credential.environment)


def model_list(table: Table, credential: Credential, request_id: bytes) -> tuple[ResponseHead, bytes]:
    """Return the models of a client's environment, as OpenAI lists them; replicas say nothing here."""
    models = []
    for name in table.models.names(credential.environment):
        endpoint = table.serving(credential.environment, name)
        if endpoint is not None and _may_know(credential, endpoint):
            models.append({"id": name, "object": "model", "created": 0, "owned_by": endpoint.environment})
    body = msgspec.json.encode({"object": "list", "data": models})
    return json_reply(200, len(body), request_id), body


def _may_know(credential: Credential, endpoint: Endpoint) -> bool:
    return not endpoint.needs_token or credential.may_call(endpoint.name, endpoint.environment)
