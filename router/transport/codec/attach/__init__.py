"""`router-attach/1`: a replica dials the router, and is served through that connection.

control   the replica's first two-way stream: frames as a robot's, maps as in `control.py`
requests  two-way streams of the router: the bytes of one connection to the replica, HTTP/1.1 or HTTP/2
"""
