"""What `quic-portal` clients speak: one two-way stream of messages, each behind its length in four bytes.

They name no protocol, no host and no credential; the listener says for which host and path they are.
"""
