"""HTTP/2 (RFC 9113), both roles, on framing and header compression of our own.

    sender  what is queued and what waits for a window        reader  frames in, and what each does
    connection  streams come and go, faults, the end          server, client  the two roles
    stream  one request's share of all that                   server_stream, client_stream  the same

`frames` the wire · `huffman`, `hpack` compressed fields (RFC 7541) · `fields`, `head` what they mean · `calm`
what a peer may waste · `limits` every bound by name. server, client < reader < connection < sender.
"""
