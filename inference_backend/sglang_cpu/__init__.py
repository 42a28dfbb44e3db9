"""The real SGLang server on a CPU, with a tiny random model, in an environment of its own.

`place` makes and finds the environment, `tiny_model` runs inside it and makes the model, `shim/` goes on its
path and stands in for what only a GPU has. SGLang itself comes from the package index, unchanged and pinned:
the shim follows private imports of that one version. The server is what keeps the simulated engine honest
(tests/contract).
"""
