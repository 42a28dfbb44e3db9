"""Python clients of the router. `RobotSession` speaks `router-robot/1`; see PROTOCOL.md.

For whoever drives a robot: `pip install 'replica-router[robot]'`. Imports nothing of the daemon's.

    async with RobotSession("quic://router:443/policy", token=TOKEN) as robot:
        metadata = await robot.recv(5.0)
        robot.send(observation, deadline_s=0.1)
        actions = await robot.recv(0.2)
"""

from __future__ import annotations

from router.client.blocking import BlockingRobotSession
from router.client.session import RobotSession
from router.client.words import GAP_BOUNDS_S, Link, Message, RobotError

__all__ = ["GAP_BOUNDS_S", "BlockingRobotSession", "Link", "Message", "RobotError", "RobotSession"]
