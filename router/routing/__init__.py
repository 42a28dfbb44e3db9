"""Where a request goes: the immutable table, replicas and their load, policies, ejection.

Layer 1: no asyncio, no clock of its own, nothing of transport.
"""
