"""Load: a comparison with other proxies, and locust users.

`python -m loadtest.compare` measures our router beside Envoy, nginx, HAProxy and SGLang's router in
one interleaved run; `python -m loadtest.run` drives `router up` with locust. `README.md` says what
each figure means. Imports nothing of `router`: it is measured from outside, as its clients see it.
"""
