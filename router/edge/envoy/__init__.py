"""An Envoy in front of this router, where one is wanted at the edge: its configuration, and running it.

`bootstrap` writes what Envoy is to do · `run` starts the binary, watches it, drains it.
"""
