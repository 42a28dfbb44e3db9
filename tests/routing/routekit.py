"""Small tables, and what a pick looks at."""

from router.routing.load import Lease
from router.routing.spec import EndpointPatch, EndpointSpec, ReplicaSpec, RouteSpec, TablePatch, TableSpec
from router.routing.stage import Stage, without_replicas
from router.routing.stage import build as build_table

T0 = 100.0


class Context:
    def __init__(self, *tried, affinity=b"", prompt=None):
        self.prompt = prompt
        self.tried = tried
        self.affinity = affinity


def specs(count, **kwargs):
    return tuple(ReplicaSpec(f"r{i}", f"http://10.0.0.{i + 1}:80", slot=i, **kwargs) for i in range(count))


def table_spec(replicas, version=1, **endpoint):
    replicas = specs(replicas) if isinstance(replicas, int) else tuple(replicas)
    return TableSpec(version, (EndpointSpec("e", replicas, **endpoint),), (RouteSpec("*", "/", "e"),))


def swap(before, spec, now=T0, board=None):
    """The table of `spec` after `before`, as a patch of all that is to be there and of what is not."""
    stage = Stage(board)
    stage.table = before
    changes = []
    for one in spec.endpoints:
        older = before.endpoints.get(one.name)
        kept = {replica.id for replica in one.replicas}
        left = () if older is None else tuple(r.id for r in older.replicas if r.id not in kept)
        changes.append(EndpointPatch(one.name, without_replicas(one), one.replicas, left))
    gone = tuple(before.endpoints.keys() - {one.name for one in spec.endpoints})
    return stage.add(TablePatch(spec.version, tuple(changes), gone, spec.routes), now).table


def build(replicas, before=None, now=T0, board=None, **endpoint):
    spec = table_spec(replicas, **endpoint)
    return build_table(spec, now, board) if before is None else swap(before, spec, now, board)


def endpoint(replicas, **kwargs):
    return build(replicas, **kwargs).endpoints["e"]


def weighted(*weights):
    return tuple(ReplicaSpec(f"r{i}", f"http://10.0.0.{i + 1}:80", weight) for i, weight in enumerate(weights))


def pick(one, *tried, now=T0, affinity=b""):
    return one.picker.pick(Context(*tried, affinity=affinity), now)


def occupy(replica, count):
    return [Lease(replica, T0) for _ in range(count)]
