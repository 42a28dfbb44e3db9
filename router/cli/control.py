"""`router endpoint|replica|route|region`: the rows that routers are told by.

Each writes one transaction, checked as the routers will read it; every router has it some milliseconds later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from router.cli.drain import wait_idle
from router.cli.writing import one, show, store_options, write
from router.config.static import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from router.config.target import Target
    from router.config.writer import Item, Writer

_STATES = click.Choice(["STARTING", "READY", "DRAINING", "DOWN"])


def _group(name: str, text: str) -> click.Group:
    return click.Group(name, help=text, context_settings={"help_option_names": ["-h", "--help"]})


endpoint = _group("endpoint", "Named pools of replicas: list, show, create, update, pause, resume, delete.")
replica = _group(
    "replica", "Inference servers of an endpoint: list, show, create, update, register, drain, undrain, delete."
)
route = _group("route", "Hosts and path prefixes that lead to endpoints: list, create, update, delete.")
region = _group(
    "region", "Regions and where they spill over to: list, show, create, update, drain, undrain, delete."
)


# -- endpoints -------------------------------------------------------------------------------------------


def _endpoint_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed([
        click.option("--environment", help="Tenant it belongs to. [default: main]"),
        click.option("--state", type=click.Choice(["ACTIVE", "PAUSED"]), help="A paused one answers 503."),
        click.option("--policy", metavar="JSON", help='As {"policy": "p2c", "slow_start_s": 30, "timeouts": {}, '
                     '"limits": {}, "outlier": {}, "retries": 2, "tls": {}, "connections": {}, "failover": ["us"], '
                     '"affinity": {}, "hold": {}, "sessions": {"idle_timeout_s": 600}, "models": ["org/name"], '
                     '"scaling": {"target_concurrency": 8, "max_replicas": 4}}.'),
        click.option("--health", metavar="JSON", help='As {"kind": "http", "path": "/ready"} or {"kind": "grpc"}.'),
        click.option("--unauthenticated/--authenticated", default=None,
                     help="Whether it is served without a token of its environment. [default: no]"),
        click.option("--sessioned/--not-sessioned", default=None,
                     help="Whether each request belongs to a sticky session. [default: no]"),
        click.option("--host", multiple=True, help="Route from this host as well; `*` is any. Repeatable."),
        click.option("--prefix", multiple=True, help="Path prefix of those routes; `/` if none is given."),
    ]):  # fmt: skip
        command = option(command)
    return command


@endpoint.command("create")
@click.argument("name")
@_endpoint_options
@store_options
def create_endpoint(target: Target, as_json: bool, **values: Any) -> None:
    """Make an endpoint, and with --host the routes to it."""
    _put_endpoint(target, as_json, create=True, **values)


@endpoint.command("update")
@click.argument("name")
@_endpoint_options
@store_options
def update_endpoint(target: Target, as_json: bool, **values: Any) -> None:
    """Change what is named; the rest stays."""
    _put_endpoint(target, as_json, create=False, **values)


@endpoint.command("pause")
@click.argument("name")
@store_options
def pause_endpoint(target: Target, as_json: bool, name: str) -> None:
    """Answer new requests for it with 503; those under way finish."""
    show(write(target, lambda w: w.put_endpoint(name, create=False, state="PAUSED")), as_json)


@endpoint.command("resume")
@click.argument("name")
@store_options
def resume_endpoint(target: Target, as_json: bool, name: str) -> None:
    """Serve it again."""
    show(write(target, lambda w: w.put_endpoint(name, create=False, state="ACTIVE")), as_json)


def _put_endpoint(
    target: Target,
    as_json: bool,
    *,
    create: bool,
    name: str,
    host: tuple[str, ...],
    prefix: tuple[str, ...],
    **changes: Any,
) -> None:
    async def work(writer: Writer) -> Item:
        return await writer.put_endpoint(name, create=create, hosts=host, prefixes=prefix or ("/",), **changes)

    show(write(target, work), as_json)


@endpoint.command("list")
@store_options
def list_endpoints(target: Target, as_json: bool) -> None:
    """List them, with how many replicas are ready."""
    show(write(target, lambda w: w.endpoints()), as_json)


@endpoint.command("show")
@click.argument("name")
@store_options
def show_endpoint(target: Target, as_json: bool, name: str) -> None:
    """Show one."""
    show(one(write(target, lambda w: w.endpoints(name)), "endpoint", name), as_json)


@endpoint.command("delete")
@click.argument("name")
@store_options
def delete_endpoint(target: Target, as_json: bool, name: str) -> None:
    """Delete one, with its replicas and the routes to it."""
    write(target, lambda w: w.delete_endpoint(name))
    show({"deleted": name} if as_json else f"endpoint {name} is deleted", as_json)


# -- replicas --------------------------------------------------------------------------------------------


def _replica_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed([
        click.option("--address", help="Host or IP address that routers connect to."),
        click.option("--port", type=click.IntRange(1, 65_535), help="Its port."),
        click.option("--weight", type=click.FloatRange(0.001, 1_000.0), help="Its share of requests. [default: 1]"),
        click.option("--state", type=_STATES, help="[default: READY]"),
        click.option("--region", help="Where it is."),
        click.option("--zone", help="Where in the region."),
        click.option("--node", help="Whose lease it lives under; without one nobody reaps it."),
        click.option("--capabilities", metavar="JSON", help='What it says of itself, as {"scheme": "https"}.'),
    ]):  # fmt: skip
        command = option(command)
    return command


@replica.command("create")
@click.argument("endpoint")
@click.argument("name")
@_replica_options
@store_options
def create_replica(target: Target, as_json: bool, endpoint: str, name: str, **changes: Any) -> None:
    """Add a replica by hand: it stays until it is deleted."""
    if changes["address"] is None or changes["port"] is None:
        raise click.UsageError("--address and --port are needed")
    show(write(target, lambda w: w.put_replica(endpoint, name, create=True, **changes)), as_json)


@replica.command("update")
@click.argument("endpoint")
@click.argument("name")
@_replica_options
@store_options
def update_replica(target: Target, as_json: bool, endpoint: str, name: str, **changes: Any) -> None:
    """Change what is named: `--state DRAINING` takes it out of rotation."""
    show(write(target, lambda w: w.put_replica(endpoint, name, create=False, **changes)), as_json)


@replica.command("drain")
@click.argument("endpoint")
@click.argument("name")
@click.option("--wait", is_flag=True, help="Return once no router of --admin has a request on it; exit 1 if not.")
@click.option("--wait-s", default=600.0, show_default=True, type=click.FloatRange(0.0), help="At most so long.")
@click.option("--admin", multiple=True, envvar="ROUTER_ADMIN", show_envvar=True,
              help="Admin listener of a router to ask; repeatable. [default: 127.0.0.1:9901]")  # fmt: skip
@click.option("--admin-token", default="", envvar="ROUTER_ADMIN_TOKEN", show_envvar=True, help="Their token.")
@store_options
def drain_replica(
    target: Target, as_json: bool, endpoint: str, name: str, wait: bool, wait_s: float, admin: tuple[str, ...],
    admin_token: str,
) -> None:  # fmt: skip
    """Take one out of rotation; requests on it finish."""
    show(write(target, lambda w: w.put_replica(endpoint, name, create=False, state="DRAINING")), as_json)
    if not wait:
        return
    try:
        left = wait_idle(admin, admin_token, endpoint, name, wait_s)
    except ConfigError as refusal:
        raise click.UsageError(str(refusal)) from None
    if left:
        click.echo(f"Error: not idle after {wait_s:g} s: {left}", err=True)
        raise SystemExit(1)


@replica.command("undrain")
@click.argument("endpoint")
@click.argument("name")
@store_options
def undrain_replica(target: Target, as_json: bool, endpoint: str, name: str) -> None:
    """Put one back into rotation."""
    show(write(target, lambda w: w.put_replica(endpoint, name, create=False, state="READY")), as_json)


@replica.command("register")
@click.argument("endpoint")
@click.argument("name")
@click.option("--address", required=True, help="Host or IP address that routers connect to.")
@click.option("--port", required=True, type=click.IntRange(1, 65_535), help="Its port.")
@click.option("--node", required=True, help="Node under whose lease it lives; the lease is renewed once.")
@click.option("--region", default="", help="Where it is.")
@click.option("--zone", default="", help="Where in the region.")
@click.option("--weight", default=1.0, type=click.FloatRange(0.001, 1_000.0), help="Its share beside others.")
@click.option("--state", default="READY", type=_STATES, show_default=True)
@click.option("--generation", type=click.IntRange(1), help="Of this incarnation. [default: the store's plus 1]")
@store_options
def register_replica(
    target: Target,
    as_json: bool,
    endpoint: str,
    name: str,
    generation: int | None,
    node: str,
    region: str,
    **values: Any,
) -> None:
    """Register a replica as its sidecar would; an older generation than the store's is refused."""

    async def work(writer: Writer) -> Item:
        from router.config.lease import renew  # noqa: PLC0415

        mine = generation or await writer.generation(endpoint, name) + 1
        await renew(writer, node, region)
        await writer.register(endpoint, name, mine, node=node, region=region, **values)
        return (await writer.replicas(endpoint, name))[0]

    show(write(target, work), as_json)


@replica.command("list")
@click.argument("endpoint", required=False)
@store_options
def list_replicas(target: Target, as_json: bool, endpoint: str | None) -> None:
    """List all, or those of an endpoint."""
    show(write(target, lambda w: w.replicas(endpoint)), as_json)


@replica.command("show")
@click.argument("endpoint")
@click.argument("name")
@store_options
def show_replica(target: Target, as_json: bool, endpoint: str, name: str) -> None:
    """Show one."""
    show(one(write(target, lambda w: w.replicas(endpoint, name)), "replica", f"{endpoint}/{name}"), as_json)


@replica.command("delete")
@click.argument("endpoint")
@click.argument("name")
@store_options
def delete_replica(target: Target, as_json: bool, endpoint: str, name: str) -> None:
    """Delete one; requests on it finish."""
    write(target, lambda w: w.delete_replica(endpoint, name))
    show({"deleted": f"{endpoint}/{name}"} if as_json else f"replica {endpoint}/{name} is deleted", as_json)


# -- routes ----------------------------------------------------------------------------------------------


_BY_MODEL = click.option("--by-model", is_flag=True, help="Instead of ENDPOINT: the `model` of the body names it.")


def _end(endpoint: str | None, by_model: bool) -> str:
    if bool(endpoint) == by_model:
        raise click.UsageError("either ENDPOINT or --by-model")
    return endpoint or ""


@route.command("create")
@click.argument("host")
@click.argument("endpoint", required=False)
@click.option("--prefix", default="/", show_default=True, help="Path prefix.")
@click.option("--priority", default=0, show_default=True, help="Higher ones are tried first within a host.")
@_BY_MODEL
@store_options
def create_route(
    target: Target, as_json: bool, host: str, endpoint: str | None, prefix: str, priority: int, by_model: bool
) -> None:
    """Lead HOST (`*`, `*.domain`, a name) and a path prefix to ENDPOINT, or to whichever serves the model."""
    end = _end(endpoint, by_model)
    show(write(target, lambda w: w.put_route(host, prefix, end, priority, create=True)), as_json)


@route.command("update")
@click.argument("host")
@click.argument("endpoint", required=False)
@click.option("--prefix", default="/", show_default=True, help="Path prefix of the route to change.")
@click.option("--priority", default=0, show_default=True, help="Higher ones are tried first within a host.")
@_BY_MODEL
@store_options
def update_route(
    target: Target, as_json: bool, host: str, endpoint: str | None, prefix: str, priority: int, by_model: bool
) -> None:
    """Lead a route that is there to another ENDPOINT, or give it another priority."""
    end = _end(endpoint, by_model)
    show(write(target, lambda w: w.put_route(host, prefix, end, priority, create=False)), as_json)


@route.command("list")
@click.argument("host", required=False)
@store_options
def list_routes(target: Target, as_json: bool, host: str | None) -> None:
    """List all, or those of a host, in the order in which they are tried."""
    show(write(target, lambda w: w.routes(host)), as_json)


@route.command("delete")
@click.argument("host")
@click.option("--prefix", default="/", show_default=True, help="Path prefix.")
@store_options
def delete_route(target: Target, as_json: bool, host: str, prefix: str) -> None:
    """Delete one."""
    write(target, lambda w: w.delete_route(host, prefix))
    show({"deleted": f"{host} {prefix}"} if as_json else f"route {host} {prefix} is deleted", as_json)


# -- regions ---------------------------------------------------------------------------------------------


def _region_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed([
        click.option("--state", type=click.Choice(["READY", "DRAINING", "DOWN"]), help="[default: READY]"),
        click.option("--weight", type=click.FloatRange(0.0, 1_000.0), help="[default: 1]"),
        click.option("--failover", multiple=True, metavar="REGION", help="Where to spill over to, in order."),
    ]):  # fmt: skip
        command = option(command)
    return command


@region.command("create")
@click.argument("name")
@_region_options
@store_options
def create_region(target: Target, as_json: bool, name: str, **changes: Any) -> None:
    """Make a region."""
    show(write(target, lambda w: w.put_region(name, create=True, **changes)), as_json)


@region.command("update")
@click.argument("name")
@_region_options
@store_options
def update_region(target: Target, as_json: bool, name: str, **changes: Any) -> None:
    """Change what is named."""
    show(write(target, lambda w: w.put_region(name, create=False, **changes)), as_json)


@region.command("drain")
@click.argument("name")
@store_options
def drain_region(target: Target, as_json: bool, name: str) -> None:
    """Send new requests to the replicas of other regions; those under way finish."""
    show(write(target, lambda w: _region_state(w, name, "DRAINING")), as_json)


@region.command("undrain")
@click.argument("name")
@store_options
def undrain_region(target: Target, as_json: bool, name: str) -> None:
    """Use its replicas again."""
    show(write(target, lambda w: _region_state(w, name, "READY")), as_json)


def _region_state(writer: Writer, name: str, state: str) -> Awaitable[Item]:
    return writer.put_region(name, create=False, state=state, weight=None, failover=())


@region.command("list")
@store_options
def list_regions(target: Target, as_json: bool) -> None:
    """List them."""
    show(write(target, lambda w: w.regions()), as_json)


@region.command("show")
@click.argument("name")
@store_options
def show_region(target: Target, as_json: bool, name: str) -> None:
    """Show one."""
    show(one(write(target, lambda w: w.regions(name)), "region", name), as_json)


@region.command("delete")
@click.argument("name")
@store_options
def delete_region(target: Target, as_json: bool, name: str) -> None:
    """Delete one that no replica is in."""
    write(target, lambda w: w.delete_region(name))
    show({"deleted": name} if as_json else f"region {name} is deleted", as_json)
