"""HTTP/2 (RFC 9113), both roles, on framing and header compression of our own.

`frames` what the wire consists of · `huffman`, `hpack` compressed fields (RFC 7541) · `fields`, `head` what
they mean · `calm` what a peer may waste · `stream` one request's flow control · `connection` what both roles
share · `server`, `client` the roles · `limits` every bound by name.
"""
