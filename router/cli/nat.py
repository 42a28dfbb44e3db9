"""`router nat`: whether this host is behind a NAT, and whether others can get through to it."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any, Final

import click

_VERDICTS: Final = {
    "none": "no NAT: this host is seen at its own address",
    "same": "a NAT with the same address for all: others can be reached directly (hole punching)",
    "another": "a NAT with another address for each (symmetric): traffic has to be relayed",
    "unknown": "a NAT, of which one answer does not tell the kind: ask a second server, or port",
    "blocked": "UDP is blocked, or nobody answers there",
}


@click.command()
@click.argument("servers", nargs=-1, required=True, metavar="HOST:PORT [HOST:PORT …]")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.1, 39.5), default=3.0, show_default=True,
              help="Seconds to wait for answers.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="Own port to ask from. [default: any]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, nothing else.")
def nat(servers: tuple[str, ...], timeout_s: float, port: int, as_json: bool) -> None:
    r"""Ask STUN servers which address they see this host at; any --listen-quic of a router is one.

    All are asked from one socket. With two or more, two ports of a router for instance, the answers tell whether a
    NAT gives the same address to all or another to each. Exit code 1 if nobody answers.

    \b
    router nat router.example:443 router.example:8443
    """
    try:
        from router.client.stun import BLOCKED, judge, survey  # noqa: PLC0415
    except ImportError as failure:
        raise click.UsageError(f"{failure}; install it with: pip install 'replica-router[robot]'") from None
    family, addresses = _resolve(servers)
    try:
        seen = asyncio.run(survey(family, addresses, timeout_s=timeout_s, port=port))
    except OSError as failure:
        raise click.ClickException(f"port {port}: {failure.strerror}") from None
    kind = judge(seen)
    if as_json:
        click.echo(json.dumps({"kind": kind, "servers": [_row(one) for one in seen]}))
    else:
        for name, one in zip(servers, seen, strict=True):
            told = f"{_show(one.mapped)}  ({one.rtt_s * 1e3:.1f} ms)" if one.mapped else one.failure
            click.echo(f"{name}: {_show(one.local)} is seen as {told}" if one.mapped else f"{name}: {told}")
        click.echo(_VERDICTS[kind])
    if kind == BLOCKED:
        raise SystemExit(1)


def _resolve(servers: tuple[str, ...]) -> tuple[int, list[Any]]:
    """Return a family that all have an address of, IPv4 first, and the addresses."""
    found: dict[int, list[Any]] = {socket.AF_INET: [], socket.AF_INET6: []}
    for server in servers:
        host, colon, port = server.removeprefix("quic://").rstrip("/").rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65_536:
            raise click.UsageError(f"{server!r} is not HOST:PORT")
        try:
            answers = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)
        except OSError as failure:
            raise click.UsageError(f"{host}: {failure.strerror}") from None
        except UnicodeError:  # "a..b", or a label above 63 characters
            raise click.UsageError(f"{host}: no name of a host") from None
        for family in found:
            found[family] += [answer[4] for answer in answers if answer[0] == family][:1]
    for family, addresses in found.items():
        if len(addresses) == len(servers):
            return family, addresses
    raise click.UsageError("some have only IPv4 addresses and some only IPv6: ask them one after the other")


def _row(one: Any) -> dict[str, Any]:
    return {
        "server": _show(one.server),
        "local": _show(one.local),
        "mapped": _show(one.mapped) if one.mapped else None,
        "rtt_s": round(one.rtt_s, 6),
        "error": one.failure or None,
    }


def _show(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
