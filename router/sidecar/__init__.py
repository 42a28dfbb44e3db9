"""The life of one inference server beside its relay, and its row in the store.

`life` is the order of things; `ports` is what it needs from others; `engine` runs the server's process,
`readiness` listens to what it says of itself, `publish` keeps the row true, `manners` reads the first event of
a stream. Imports nothing here, so that `manners`, which is pure, costs its user nothing else.
"""
