"""Routing by the OpenAI `model`: which endpoint a client's model means, and which models it is told of.

A host that several endpoints share asks the body, or the query of a request without one (`?model=`, as OpenAI's
realtime API has it). Everything happens within the environment of the client's token: what others have does not
exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from router.body_head import MAX_HEAD_BYTES
from router.errors import Kind, ProxyError, Source
from router.routing.credentials import ANYBODY

if TYPE_CHECKING:
    from router.http import RequestShape
    from router.routing.credentials import Credential
    from router.routing.table import Endpoint, Table

MODELS_PATH = b"/v1/models"
MAX_QUERY_FIELDS = 64
MAX_LISTS = 256  # of models, remembered as they were sent until the next change
_MISSING = ProxyError(
    Kind.MODEL_MISSING, Source.DOWNSTREAM,
    detail=f"`model` is no text at the top level of the JSON in the first {MAX_HEAD_BYTES} bytes",
)  # fmt: skip
NOT_FOUND = ProxyError(Kind.MODEL_NOT_FOUND, Source.DOWNSTREAM)
UNKNOWN_CLIENT = ProxyError(Kind.UNAUTHENTICATED, Source.DOWNSTREAM)


def is_model_list(shape: RequestShape) -> bool:
    """Whether a request asks for the models there are, or for one of them."""
    path = shape.path.partition(b"?")[0]
    is_below = path.startswith(MODELS_PATH) and path[len(MODELS_PATH) :][:1] in (b"", b"/")
    return is_below and shape.method in (b"GET", b"HEAD")


def model_of_query(path: bytes) -> str | None:
    """Return the `model` of a target's query."""
    try:
        fields = parse_qsl(path.partition(b"?")[2].decode(), max_num_fields=MAX_QUERY_FIELDS)
    except ValueError:  # UnicodeDecodeError among them
        return None
    return next((value for name, value in fields if name == "model"), None)


def find_serving(table: Table, credential: Credential, model: str | None) -> Endpoint | ProxyError:
    """Return the first endpoint of a client's environment that serves a model and that they may know of."""
    if model is None:
        return _MISSING
    endpoint = _first_serving(table, credential, model)
    if endpoint is not None:
        return endpoint
    # Somebody without a token may be somebody's client who forgot it.
    return UNKNOWN_CLIENT if credential is ANYBODY and len(table.credentials) else NOT_FOUND


def _environment(credential: Credential) -> str | None:
    return None if credential.is_operator else credential.environment


def _first_serving(table: Table, credential: Credential, model: str) -> Endpoint | None:
    for name in table.models.find(_environment(credential), model):
        endpoint = table.endpoints.get(name)
        if endpoint is not None and _may_know(credential, endpoint):
            return endpoint
    return None


def is_stranger(table: Table, credential: Credential) -> bool:
    """Whether nothing here can be meant for a client, whatever the body says."""
    if credential is not ANYBODY or not len(table.credentials):
        return False
    return not table.models.is_open(credential.environment)


def model_list(table: Table, credential: Credential, path: bytes) -> bytes | None:
    """Return the models of a client's environment as OpenAI lists them, or the one that the path names, if any."""
    wanted = unquote_to_bytes(path.partition(b"?")[0][len(MODELS_PATH) + 1 :]).decode(errors="replace")
    if wanted:
        endpoint = _first_serving(table, credential, wanted)
        return None if endpoint is None else msgspec.json.encode(_card(wanted, endpoint))
    models = table.models
    key = (_environment(credential), credential.endpoints, credential is ANYBODY)
    body = models.bodies.get(key)
    if body is None:
        cards = []
        for name in models.names(key[0]):
            endpoint = _first_serving(table, credential, name)
            if endpoint is not None:
                cards.append(_card(name, endpoint))
        body = msgspec.json.encode({"object": "list", "data": cards})
        if len(models.bodies) < MAX_LISTS:
            models.bodies[key] = body
    return body


def _card(name: str, endpoint: Endpoint) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": endpoint.environment}


def _may_know(credential: Credential, endpoint: Endpoint) -> bool:
    return not endpoint.needs_token or credential.may_call(endpoint.name, endpoint.environment)
