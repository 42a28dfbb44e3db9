"""`router session`: sticky sessions of a store's fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from router.cli.writing import show, store_options, write

if TYPE_CHECKING:
    from router.config.target import Target

session = click.Group(
    "session",
    help="Sticky sessions of the fleet: list, terminate, rotate-key.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@session.command("list")
@click.option("--endpoint", help="Only those of one endpoint.")
@store_options
def list_sessions(target: Target, as_json: bool, endpoint: str | None) -> None:
    """List the open ones, each with its replica and when it was used last."""

    async def work(writer: Any) -> Any:
        from router.config.session_admin import sessions  # noqa: PLC0415 - imports gRPC

        return await sessions(writer, endpoint)

    show(write(target, work), as_json)


@session.command("terminate")
@click.argument("session_id")
@store_options
def terminate(target: Target, as_json: bool, session_id: str) -> None:
    """End one at every router; requests under way finish."""

    async def work(writer: Any) -> None:
        from router.config.session_admin import end_session  # noqa: PLC0415

        await end_session(writer, session_id)

    write(target, work)
    show({"terminated": session_id} if as_json else f"session {session_id} is terminated", as_json)


@session.command("rotate-key")
@click.option("--wait", "wait_s", type=click.FloatRange(0.0, 3_600.0), default=10.0, show_default=True,
              help="Seconds for every router to hear of the new key before it signs.")  # fmt: skip
@store_options
def rotate_key(target: Target, as_json: bool, wait_s: float) -> None:
    """Sign tokens with a new key. Those of the key before go on; of an older one they end."""

    async def work(writer: Any) -> int:
        from router.config.session_admin import rotate_key as rotate  # noqa: PLC0415

        return await rotate(writer, wait_s)

    if not as_json and wait_s:
        click.echo(f"the new key verifies; it signs in {wait_s:g} s", err=True)
    count = write(target, work)
    show({"keys": count} if as_json else f"a new key signs; {count} verify", as_json)
