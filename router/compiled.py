"""The data path as machine code: the same source, compiled in place by mypyc, used if it is not stale.

    router compile            # about a minute; needs mypy and a C compiler
    ROUTER_PURE=1 router …    # this once without it

Compiled modules call each other natively, so it is all of them or none: each build writes down a digest of
its sources, and where one differs the Python source is imported instead. Measured: 23 us of Python a request
become 3.4. Asked once, when the package is imported. Imports nothing of the project.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent
RECORD = ROOT / "compiled.json"

HOT = (
    "body_head",
    "by_model",
    "client/endpoint",
    "client/port",
    "clock",
    "core",
    "counters",
    "deadlines",
    "edge/admin_request",  # its class is handed to the compiled codec
    "edge/admission",
    "edge/attach_client",
    "edge/attach_server",
    "edge/attach_side",
    "edge/connection",
    "edge/direct_robots",
    "edge/headcount",
    "edge/lane_dials",
    "edge/listener",
    "edge/quic_counters",
    "edge/quic_dialled",
    "edge/quic_forwarding",
    "edge/quic_listener",
    "edge/quic_protocols",
    "edge/quic_shell",
    "edge/quic_strangers",
    "edge/quic_timers",
    "edge/splice",
    "engine_manners",
    "exchange",
    "exchange_ending",
    "exchange_entry",
    "exchange_session",
    "grpc_fields",
    "http",
    "outcomes",
    "request_fields",
    "routing/balancer",
    "routing/credentials",
    "routing/load",
    "routing/outlier",
    "routing/policies/__init__",
    "routing/policies/chooser",
    "routing/policies/engine_load",
    "routing/policies/least_inflight",
    "routing/policies/p2c",
    "routing/policies/random",
    "routing/policies/round_robin",
    "routing/prefix",
    "routing/regions",
    "routing/ring",
    "routing/sessions",
    "routing/stage",
    "routing/table",
    "routing/tier",
    "server_timing",
    "session_fields",
    "stream",
    "transport/codec/ending",
    "transport/codec/fields",
    "transport/codec/framing",
    "transport/codec/gone",
    "transport/codec/grammar",
    "transport/codec/h1/body",
    "transport/codec/h1/client",
    "transport/codec/h1/connection",
    "transport/codec/h1/fields",
    "transport/codec/h1/head",
    "transport/codec/h1/memo",
    "transport/codec/h1/server",
    "transport/codec/h2/calm",
    "transport/codec/h2/client",
    "transport/codec/h2/client_stream",
    "transport/codec/h2/connection",
    "transport/codec/h2/frames",
    "transport/codec/h2/head",
    "transport/codec/h2/hpack",
    "transport/codec/h2/reader",
    "transport/codec/h2/sender",
    "transport/codec/h2/server",
    "transport/codec/h2/server_stream",
    "transport/codec/h2/stream",
    "transport/codec/h3/connection",
    "transport/codec/h3/frames",
    "transport/codec/h3/head",
    "transport/codec/h3/oneway",
    "transport/codec/h3/qpack",
    "transport/codec/h3/reader",
    "transport/codec/h3/server",
    "transport/codec/h3/server_stream",
    "transport/codec/h3/stream",
    "transport/codec/head",
    "transport/codec/huffman",
    "transport/codec/message_tunnel",
    "transport/codec/messages",
    "transport/codec/portal/server",
    "transport/codec/post_tunnel",
    "transport/codec/preface",
    "transport/codec/quic/ack_frequency",
    "transport/codec/quic/aead",
    "transport/codec/quic/client",
    "transport/codec/quic/config",
    "transport/codec/quic/congestion",
    "transport/codec/quic/connection",
    "transport/codec/quic/crypto_stream",
    "transport/codec/quic/flow",
    "transport/codec/quic/frames_in",
    "transport/codec/quic/frames_out",
    "transport/codec/quic/ids",
    "transport/codec/quic/keys",
    "transport/codec/quic/packet",
    "transport/codec/quic/packets_in",
    "transport/codec/quic/packets_out",
    "transport/codec/quic/path",
    "transport/codec/quic/ranges",
    "transport/codec/quic/recovery",
    "transport/codec/quic/reorder",
    "transport/codec/quic/seam",
    "transport/codec/quic/server",
    "transport/codec/quic/state",
    "transport/codec/quic/streams",
    "transport/codec/quic/transport_parameters",
    "transport/codec/quic/varint",
    "transport/codec/robot/asked",
    "transport/codec/robot/client",
    "transport/codec/robot/client_commands",
    "transport/codec/robot/command_lane",
    "transport/codec/robot/counters",
    "transport/codec/robot/ending",
    "transport/codec/robot/epochs",
    "transport/codec/robot/lane_stream",
    "transport/codec/robot/link",
    "transport/codec/robot/peer_clock",
    "transport/codec/robot/replica_side",
    "transport/codec/robot/reports",
    "transport/codec/robot/seen",
    "transport/codec/robot/server",
    "transport/codec/robot/state_lane",
    "transport/codec/robot/wire",
    "transport/codec/stun",
    "transport/codec/websocket",
    "transport/codec/webtransport/capsules",
    "transport/codec/webtransport/codes",
    "transport/codec/webtransport/host",
    "transport/codec/webtransport/lanes",
    "transport/codec/webtransport/session",
    "transport/outbox",
    "transport/robot_collector",
    "transport/shell",
    "transport/udp",
    "transport/upstream/connection",
    "transport/upstream/dial",
    "transport/upstream/opening",
    "transport/upstream/pool",
    "transport/upstream/question",  # its classes are handed to the compiled codec
    "walltime",
)


def digest() -> str:
    """Return a digest of the hot sources, the interpreter and the list itself."""
    found = hashlib.sha256(sys.version.encode())
    for name in HOT:
        found.update(name.encode() + b"\0" + (ROOT / f"{name}.py").read_bytes())
    return found.hexdigest()


def choose() -> bool:
    """Return whether compiled modules are used; where they are not, hide them from the import system.

    Also where there is no record: a build that was interrupted leaves modules that do not fit together.
    """
    if not os.environ.get("ROUTER_PURE") and is_current():
        _load_shared()
        return True
    sys.path_hooks.insert(0, _source_finder)
    sys.path_importer_cache.pop(str(ROOT), None)  # made when this module was looked for
    return False


def is_current() -> bool:
    """Whether the last build is whole and was of the sources as they are."""
    try:
        recorded = json.loads(RECORD.read_text(encoding="utf-8"))["digest"]
        return len(built_files()) == len(HOT) + 1 and bool(recorded == digest())
    except (OSError, ValueError, KeyError, TypeError):
        return False  # a torn record is no record


def built_files() -> list[Path]:
    """Return every file a build leaves in the package."""
    return list(ROOT.rglob(f"*{importlib.machinery.EXTENSION_SUFFIXES[0]}"))


def _load_shared() -> None:
    """Load the library that the compiled modules are parts of; it is a top-level module to them."""
    for path in ROOT.glob(f"*__mypyc{importlib.machinery.EXTENSION_SUFFIXES[0]}"):
        name = path.name.partition(".")[0]
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


def _source_finder(path: str) -> importlib.machinery.FileFinder:
    """Find only sources below this package; ImportError hands every other place to the usual finders."""
    if not Path(path).is_relative_to(ROOT):
        raise ImportError
    loader = (importlib.machinery.SourceFileLoader, importlib.machinery.SOURCE_SUFFIXES)
    return importlib.machinery.FileFinder(path, loader)
