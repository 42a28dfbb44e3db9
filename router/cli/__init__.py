"""The command line. Each flag has an environment twin (`ROUTER_…`) and a key in the file's [router] table.

flag > environment > file > default. Exit codes: 0 clean, 1 fatal, 2 bad usage or settings, 3 cannot bind,
4 the drain deadline cut requests, 128+n ended by signal n.
"""

from __future__ import annotations

import click

from router import __version__
from router.cli.autoscale import autoscale
from router.cli.certs import certs
from router.cli.compile import compile_
from router.cli.control import endpoint, region, replica, route
from router.cli.drain import drain
from router.cli.edge import edge
from router.cli.nat import nat
from router.cli.robot import robot
from router.cli.serve import serve
from router.cli.session import session
from router.cli.sidecar import sidecar
from router.cli.store_admin import store
from router.cli.token import token
from router.cli.up import up


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="router")
def main() -> None:
    """A low-latency L7 proxy and router in front of pools of inference replicas."""


main.add_command(serve)
main.add_command(up)
main.add_command(drain)
main.add_command(sidecar)
main.add_command(store)
main.add_command(autoscale)
main.add_command(edge)
main.add_command(robot)
main.add_command(nat)
main.add_command(compile_)
main.add_command(certs)
for group in (endpoint, replica, route, token, region, session):
    main.add_command(group)


def _keep_lines(command: click.Command) -> None:
    r"""Let paragraphs marked `\b` keep their lines: click looks for a backspace, which no docstring should hold."""
    if command.help:
        command.help = command.help.replace("\\b\n", "\b\n")
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _keep_lines(inner)


_keep_lines(main)
