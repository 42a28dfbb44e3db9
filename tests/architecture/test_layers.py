"""The layer order of the package, read from its imports: nothing may import upwards, and no cycles."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2] / "router"

# First match wins. Equal numbers may import each other only inside the same name.
LAYERS = [
    ("router.transport.codec", 1, "codec"),
    ("router.routing", 1, "routing"),
    ("router.transport", 2, "transport"),
    ("router.client", 3, "client"),
    ("router.config.embedded", 2, "embedded"),
    ("router.config", 2, "config"),
    ("router.core", 3, "exchange"),
    ("router.by_model", 3, "exchange"),
    ("router.exchange", 3, "exchange"),
    ("router.exchange_ending", 3, "exchange"),
    ("router.exchange_entry", 3, "exchange"),
    ("router.exchange_session", 3, "exchange"),
    ("router.session_fields", 3, "exchange"),
    ("router.outcomes", 3, "exchange"),
    ("router.engine_manners", 3, "exchange"),
    ("router.edge", 4, "edge"),
    ("router.control", 4, "control"),
    ("router.sidecar", 4, "sidecar"),
    ("router.autoscale.policy", 3, "scaling"),
    ("router.autoscale.launcher", 3, "scaling"),
    ("router.autoscale.fleet", 3, "scaling"),
    ("router.autoscale", 4, "autoscale"),
    ("router.worker_process", 5, "app"),
    ("router.worker_answers", 5, "app"),
    ("router.worker", 5, "app"),
    ("router.demand_watch", 5, "app"),
    ("router.session_desk", 5, "app"),
    ("router.session_calls", 5, "app"),
    ("router.takeover_desk", 5, "app"),
    ("router.takeover_calls", 5, "app"),
    ("router.session_keeper", 2, "config"),
    ("router.session_book", 2, "config"),
    ("router.listening", 5, "app"),
    ("router.quic_ways", 5, "app"),
    ("router.quic_serving", 5, "app"),
    ("router.boards", 5, "app"),
    ("router.app", 5, "app"),
    ("router.daemon_admin", 5, "app"),
    ("router.handover", 5, "app"),
    ("router.reload", 5, "app"),
    ("router.service", 5, "app"),
    ("router.succession", 5, "app"),
    ("router.upgrade", 5, "app"),
    ("router.cli", 5, "app"),
    ("router.__main__", 5, "app"),
    ("router.body_head", 0, "base"),
    ("router.walltime", 0, "base"),
    ("router.first_event", 0, "base"),
    ("router.forwarded", 0, "base"),
    ("router.engine_relay", 5, "app"),
    ("router.errors", 0, "base"),
    ("router.http", 0, "base"),
    ("router.stream", 0, "base"),
    ("router.clock", 0, "base"),
    ("router.counters", 0, "base"),
    ("router.compiled", 0, "base"),
    ("router.local_reply", 0, "base"),
    ("router.grpc_fields", 0, "base"),
    ("router.request_fields", 0, "base"),
    ("router.deadlines", 0, "base"),
    ("router.telemetry", 0, "base"),
    ("router", 0, "base"),
]
NO_ASYNCIO = {"base", "codec", "routing", "exchange", "manners", "scaling"}
# A layer-2 piece may use these of its own layer; edge speaks to workers in the words of `control`.
ALLOWED = {("config", "transport"), ("config", "embedded"), ("embedded", "transport"), ("edge", "control")}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(("router", *path.relative_to(ROOT).with_suffix("").parts))
        yield name.removesuffix(".__init__"), ast.parse(path.read_text())


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def place(name):
    for prefix, layer, group in LAYERS:
        if name == prefix or name.startswith(prefix + "."):
            return layer, group
    raise AssertionError(f"{name} has no layer")


def test_every_module_imports_downwards_only():
    wrong = []
    for name, tree in modules():
        layer, group = place(name)
        for imported in imports(tree):
            if not (imported == "router" or imported.startswith("router.")):
                continue
            other_layer, other_group = place(imported)
            if other_group == group or other_layer < layer or (group, other_group) in ALLOWED:
                continue
            wrong.append(f"{name} ({group}) imports {imported} ({other_group})")
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_edge_and_config_never_meet_and_transport_knows_no_exchange():
    for name, tree in modules():
        found = set(imports(tree))
        if name.startswith("router.edge"):
            assert not any(i.startswith("router.config") for i in found), name
        if name.startswith("router.config"):
            assert not any(i.startswith("router.edge") for i in found), name
        if name.startswith("router.transport"):
            assert not any(i.startswith(("router.exchange", "router.edge")) for i in found), name


def test_pure_layers_know_neither_asyncio_nor_the_clock():
    for name, tree in modules():
        _, group = place(name)
        found = set(imports(tree))
        if group in NO_ASYNCIO:
            assert not {i for i in found if i.split(".")[0] in ("asyncio", "uvloop", "threading", "socket")}, name
        if group in ("codec", "routing", "exchange", "scaling"):
            assert not {i for i in found if i.split(".")[0] == "time"}, f"{name} reads a clock"


def test_workers_import_neither_grpc_nor_protobuf():
    """Nor what only QUIC needs, unless they serve it."""
    import subprocess
    import sys

    code = "import sys, router.worker; print(sorted(m for m in sys.modules if m.split('.')[0] in ('grpc','google','aiohttp','click','rich','prometheus_client','aioquic','cryptography')))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_banned_calls():
    """The project's own `spawn` is the one way to start a task; durations never come from the wall clock."""
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                if node.attr == "create_task":
                    assert name == "router.transport.tasks", name
                if node.attr == "Queue" and isinstance(node.value, ast.Name):
                    assert node.value.id != "asyncio", name


def test_files_stay_small():
    for path in ROOT.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 750, path
