"""WebTransport sessions on an HTTP/3 connection (draft-ietf-webtrans-http3, RFC 9220, RFC 9297), the server's role.

    h3/server.py --CONNECT--> lanes.py --> session.py, a Bearer --> the application (codec/robot)
                 --streams, datagrams--> lanes.py --> whose they are, or what waits for its CONNECT

A session is to its application what a QUIC connection is: streams, datagrams, an end with a code. Spoken are the
drafts that browsers speak, 02 and 07, which differ in settings alone.
"""
