"""HTTP/1.1 (RFC 9112), strict, in both roles.

`fields` is the grammar of one line, `head` of a whole head, `body` of the framings; `server` and `client`
are the two state machines over them. Nothing is forwarded that was not understood: every line that goes
out was parsed into a field and written from it, which makes splitting and smuggling impossible.
"""
