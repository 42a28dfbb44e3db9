"""Python clients of the router. `RobotSession` speaks `router-robot/1`; see PROTOCOL.md.

Imported by whoever drives a robot: needs the extra `robot`, nothing of the daemon's.
"""
