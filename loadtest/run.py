"""`python -m loadtest.run`: locust, headless, with all kinds of users against a router it starts itself.

Starts `router up --no-check --json` (simulated replicas included) unless `--target` names a running
router, runs locust for a fixed time, and leaves `report.html`, locust's CSV files and both logs in the
report folder. The exit code is 0 when every kind of user was served and no request failed, 1 when
not, or when a process would not start, 130 on Ctrl-C. Imports `processes`, `percentiles`, `report`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from loadtest.peers.ours import CHECKOUT
from loadtest.percentiles import percentile
from loadtest.processes import READY_S, Child, Fleet, NotReadyError, interrupt_on_sigterm
from loadtest.report import number

if TYPE_CHECKING:
    from collections.abc import Mapping

# Kind of user: its class, and the entry that says that it was served.
USERS = {
    "http": ("HttpChatUser", "POST chat completion"),
    "sse": ("SseChatUser", "SSE stream"),
    "websocket": ("WebSocketPolicyUser", "WS infer"),
    "h2": ("Http2ChatUser", "H2 chat completion"),
    "grpc": ("GrpcUser", "gRPC Generate"),
    "h3": ("Http3ChatUser", "H3 chat completion"),
    "robot": ("RobotUser", "Robot infer"),
}
OVER_QUIC = ("h3", "robot")
STATS = "locust.json"
GRACE_S = 30.0  # locust finishes the requests in flight and writes its report


def parse_kinds(_context: click.Context, _parameter: click.Parameter, value: str) -> list[str]:
    """Click callback for a comma-separated choice of kinds of users."""
    wanted = {name.strip() for name in value.split(",") if name.strip()}
    if unknown := sorted(wanted - USERS.keys()):
        raise click.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(USERS)}")
    return [kind for kind in USERS if kind in wanted]


def start_router(fleet: Fleet, folder: Path, arguments: tuple[str, ...]) -> tuple[str, str]:
    """Start `router up` and return its URLs, over TCP and over QUIC; NotReadyError when it does not come up."""
    command = [sys.executable, "-m", "router", "up", "--no-check", "--json", "--listen", "127.0.0.1:0"]
    child = fleet.start(
        "router",
        [*command, *arguments],
        folder=folder,
        cpus=sorted(os.sched_getaffinity(0)),
        environment={"PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1"},
    )
    until = time.monotonic() + 3 * READY_S  # it starts replicas, too
    while time.monotonic() < until:
        urls = announced(child.output.read_text(errors="replace"))
        if urls is not None:
            return urls
        if child.process.poll() is not None:
            raise NotReadyError(f"`router up` ended with {child.process.returncode}: {child.last_output()}")
        time.sleep(0.05)
    raise NotReadyError(f"`router up` was not ready in time: {child.last_output()}")


def announced(output: str) -> tuple[str, str] | None:
    """URLs of the `ready` line of `router up`, that of QUIC empty if it is not served; None while there is none."""
    for line in output.splitlines():
        if not line.startswith("{"):
            continue
        try:
            found = json.loads(line)
        except ValueError:  # half a line so far
            continue
        if found.get("event") == "ready":
            return str(found["listen"]), str(found.get("quic", ""))
    return None


def possible(kinds: list[str], quic_url: str, console: Console) -> list[str]:
    """Kinds of users that have a place to go to; NotReadyError when none has."""
    found = kinds if quic_url else [kind for kind in kinds if kind not in OVER_QUIC]
    left_out = ", ".join(kind for kind in kinds if kind not in found)
    if not found:
        raise NotReadyError(f"no QUIC there, which {left_out} users need: see --quic-target")
    if left_out:
        console.print(f"no QUIC there (--quic-target): without {left_out} users", style="yellow")
    return found


def start_locust(
    fleet: Fleet, folder: Path, target: str, kinds: list[str], options: Mapping[str, str]
) -> Child:
    """Start locust against `target`; `options` are its own and those of the users, by name."""
    command = [
        *(sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("users.py"))),
        *("--headless", "--only-summary", "--host", target),
        *("--html", str(folder / "report.html"), "--csv", str(folder / "locust")),
        # The CSV files lag behind by a moment; the final figures are in the JSON.
        *("--json-file", str(folder / STATS.removesuffix(".json"))),
        *(part for name, value in options.items() for part in (f"--{name}", value)),
        *(USERS[kind][0] for kind in kinds),
    ]
    return fleet.start(
        "locust",
        command,
        folder=folder,
        cpus=sorted(os.sched_getaffinity(0)),
        environment={"PYTHONPATH": str(CHECKOUT)},
    )


def wait_locust(child: Child, run_time_s: float, console: Console) -> int:
    """Exit code of locust, under a progress bar; it is ended when it overstays."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, refresh_per_second=2) as progress:
        task = progress.add_task("locust", total=run_time_s)
        started = time.monotonic()
        while (code := child.process.poll()) is None:
            elapsed_s = time.monotonic() - started
            if elapsed_s > run_time_s + GRACE_S:
                raise NotReadyError(f"locust did not end: {child.last_output()}")
            progress.update(task, completed=min(elapsed_s, run_time_s))
            time.sleep(0.1)
        progress.update(task, completed=run_time_s)
    return code


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of locust's final statistics; times in milliseconds, as locust rounds them."""

    name: str
    method: str
    num_requests: int
    num_failures: int
    start_time: float
    last_request_timestamp: float | None
    max_response_time: float
    response_times: dict[float, int]

    def percentile_ms(self, fraction: float) -> float | None:
        """Response time below which `fraction` (0 to 1) of the requests lie; None without any."""
        ordered = [time_ms for time_ms, count in sorted(self.response_times.items()) for _ in range(count)]
        return percentile(ordered, fraction) if ordered else None

    def rate(self) -> float:
        """Return requests a second, from the start to the last one."""
        span_s = (self.last_request_timestamp or self.start_time) - self.start_time
        return self.num_requests / span_s if span_s > 0 else 0.0


def read_stats(folder: Path, locust: Child) -> list[Entry]:
    """Entries of locust's final statistics; NotReadyError when it left none."""
    try:
        return msgspec.json.decode((folder / STATS).read_bytes(), type=list[Entry])
    except (OSError, msgspec.DecodeError) as failure:
        raise NotReadyError(f"locust wrote no statistics ({failure}): {locust.last_output()}") from failure


def failures(entries: list[Entry]) -> int:
    """Failed requests of all entries."""
    return sum(entry.num_failures for entry in entries)


def unserved(entries: list[Entry], kinds: list[str]) -> list[str]:
    """Kinds of users of which no request was answered: silence is a failure, too."""
    served = {f"{entry.method} {entry.name}" for entry in entries if entry.num_requests > entry.num_failures}
    return [kind for kind in kinds if USERS[kind][1] not in served]


def stats_table(entries: list[Entry]) -> Table:
    """Table of the entries."""
    table = Table(title="locust, times in ms", title_justify="left", title_style="bold")
    for name in ("entry", "requests", "failures", "per second", "p50", "p90", "p99", "max"):
        table.add_column(name, justify="left" if name == "entry" else "right", no_wrap=name == "entry")
    for entry in sorted(entries, key=lambda one: (one.method, one.name)):
        table.add_row(
            f"{entry.method} {entry.name}",
            str(entry.num_requests),
            str(entry.num_failures),
            number(entry.rate()),
            *(number(entry.percentile_ms(fraction)) for fraction in (0.5, 0.9, 0.99)),
            number(entry.max_response_time),
            style="red" if entry.num_failures else None,
        )
    return table


@click.command()
@click.option("--users", default=30, show_default=True, type=click.IntRange(1), help="Users at the peak.")
@click.option("--spawn-rate", default=10.0, show_default=True, help="Users started a second.")
@click.option("--run-time", "run_time_s", default=30.0, show_default=True, help="Seconds of load.")
@click.option(
    "--kind",
    "kinds",
    default=",".join(USERS),
    show_default=True,
    callback=parse_kinds,
    help="Kinds of users, comma-separated.",
)
@click.option("--target", help="URL of a running router; without it one is started.")
@click.option("--quic-target", default="", help="Its quic://HOST:PORT, for h3 and robot users.")
@click.option("--model", default="sim", show_default=True, help="Model that chat requests name.")
@click.option(
    "--policy-host", default="policy.localhost", show_default=True, help="Host of the policy endpoint."
)
@click.option("--api-key", default="", help="Bearer token of the chat users.")
@click.option(
    "--up-args", default="", help="More arguments for `router up`, separated by spaces, in one string."
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Report folder.  [default: loadtest/reports/locust-<time>]",
)
def main(
    *,
    users: int,
    spawn_rate: float,
    run_time_s: float,
    kinds: list[str],
    target: str | None,
    quic_target: str,
    model: str,
    policy_host: str,
    api_key: str,
    up_args: str,
    output: Path | None,
) -> None:
    """Load a router with HTTP, SSE, WebSocket, HTTP/2, gRPC and HTTP/3 users and robots, and report.

    Without --target it starts `router up` with its simulated replicas. Exits non-zero when any
    request failed.
    """
    console = Console(width=None if sys.stdout.isatty() else 120)
    name = datetime.now(UTC).strftime("locust-%Y%m%d-%H%M%S")
    folder = (output or CHECKOUT / "loadtest" / "reports" / name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "users": str(users),
        "spawn-rate": f"{spawn_rate:g}",
        "run-time": f"{max(1, round(run_time_s))}s",
        "model": model,
        "policy-host": policy_host,
        "api-key": api_key,
    }
    try:
        with interrupt_on_sigterm(), Fleet() as fleet:
            url, quic_url = (
                (target, quic_target) if target else start_router(fleet, folder, tuple(up_args.split()))
            )
            kinds = possible(kinds, quic_url, console)
            options["quic-url"] = quic_url
            console.print(f"{users} users ({', '.join(kinds)}) against {url}", highlight=False)
            locust = start_locust(fleet, folder, url, kinds, options)
            code = wait_locust(locust, run_time_s, console)
            entries = read_stats(folder, locust)
    except NotReadyError as failure:
        console.print(str(failure), style="red", markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("interrupted; every process is ended", style="yellow")
        sys.exit(130)
    console.print(stats_table(entries))
    silent = unserved(entries, kinds)
    for kind in silent:
        console.print(f"no {kind} user was served", style="red")
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
    sys.exit(1 if code or silent or failures(entries) else 0)


if __name__ == "__main__":
    main()
