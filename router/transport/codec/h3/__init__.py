"""HTTP/3 on the streams of a QUIC connection (RFC 9114), the server's role; sans I/O.

    quic/seam.py Bearer --> server.py --> server_stream.py --> router/stream.py (the exchange)
                            server.py --> oneway.py: the client's control and QPACK streams

Nothing here knows packets, loss or windows: the bearer has the streams. What is written is sent by the engine
as its congestion window allows, what is received is credited once it has been handed on.
"""
