"""Small tables, and what a pick looks at."""

from router.routing.load import Lease
from router.routing.spec import EndpointSpec, ReplicaSpec, RouteSpec, TableSpec
from router.routing.table import Table

T0 = 100.0


class Context:
    def __init__(self, *tried):
        self.tried = tried


def specs(count, **kwargs):
    return tuple(ReplicaSpec(f"r{i}", f"http://10.0.0.{i + 1}:80", slot=i, **kwargs) for i in range(count))


def table_spec(replicas, version=1, **endpoint):
    replicas = specs(replicas) if isinstance(replicas, int) else tuple(replicas)
    return TableSpec(version, (EndpointSpec("e", replicas, **endpoint),), (RouteSpec("*", "/", "e"),))


def build(replicas, before=None, now=T0, board=None, **endpoint):
    return Table.build(table_spec(replicas, **endpoint), before, now, board)


def endpoint(replicas, **kwargs):
    return build(replicas, **kwargs).endpoints["e"]


def weighted(*weights):
    return tuple(ReplicaSpec(f"r{i}", f"http://10.0.0.{i + 1}:80", weight) for i, weight in enumerate(weights))


def pick(one, *tried, now=T0):
    return one.picker.pick(Context(*tried), now)


def occupy(replica, count):
    return [Lease(replica, T0) for _ in range(count)]
