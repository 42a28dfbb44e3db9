"""On PYTHONPATH of the real SGLang server, never imported as a package: see `sitecustomize`."""
