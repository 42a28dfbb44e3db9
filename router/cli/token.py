"""`router token`: the credentials of clients, in a store. A secret is shown once, when it is made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from router.cli.writing import one, show, store_options, write

if TYPE_CHECKING:
    from router.config.target import Target
    from router.config.writer import Item, Writer

token = click.Group(
    "token",
    help="Credentials of clients: list, create, revoke, delete.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@token.command("create")
@click.argument("subject")
@click.option("--environment", default="main", show_default=True, help="Tenant whose endpoints it opens.")
@click.option("--scope", multiple=True, metavar="SCOPE",
              help="`endpoint:NAME` limits it to that endpoint, `pin` lets it name the replica, `attach:NAME` "
                   "lets a replica attach as that, and nothing else; repeatable.")
@click.option("--rate", type=click.FloatRange(0.0, min_open=True), help="Requests a second, on each router.")
@click.option("--burst", type=click.IntRange(1), help="How many may come at once. [default: a second's worth]")
@click.option("--not-after", metavar="TIME", help="When it ends, as 2027-01-31T00:00:00Z.")
@store_options
def create(
    target: Target,
    as_json: bool,
    subject: str,
    environment: str,
    scope: tuple[str, ...],
    not_after: str | None,
    rate: float | None,
    burst: int | None,
) -> None:
    """Make a token for SUBJECT. The secret is shown now and never again: the store has its hash."""
    if burst and not rate:
        raise click.UsageError("--burst goes with --rate")
    limit = json.dumps({"per_s": rate, "burst": burst or 0}) if rate else None

    async def work(writer: Writer) -> Item:
        from router.config.token_admin import create_token  # noqa: PLC0415 - imports gRPC

        return await create_token(writer, subject, environment, scope, not_after, limit)

    show(write(target, work), as_json)


@token.command("list")
@store_options
def list_tokens(target: Target, as_json: bool) -> None:
    """List them, without their secrets."""
    show(write(target, _listed), as_json)


@token.command("show")
@click.argument("key")
@store_options
def show_token(target: Target, as_json: bool, key: str) -> None:
    """Show one, without its secret."""
    show(one(write(target, lambda w: _listed(w, key)), "token", key), as_json)


@token.command("revoke")
@click.argument("key")
@store_options
def revoke(target: Target, as_json: bool, key: str) -> None:
    """Revoke one; it stays in the list."""
    write(target, lambda w: _change(w, key, delete=False))
    show({"revoked": key} if as_json else f"token {key} is revoked", as_json)


@token.command("delete")
@click.argument("key")
@store_options
def delete(target: Target, as_json: bool, key: str) -> None:
    """Delete one."""
    write(target, lambda w: _change(w, key, delete=True))
    show({"deleted": key} if as_json else f"token {key} is deleted", as_json)


async def _listed(writer: Writer, key: str | None = None) -> list[Item]:
    from router.config.token_admin import tokens  # noqa: PLC0415

    return await tokens(writer, key)


async def _change(writer: Writer, key: str, *, delete: bool) -> None:
    from router.config.token_admin import change_token  # noqa: PLC0415

    await change_token(writer, key, delete=delete)
