"""Connections to replicas: dialling, pooling, retiring, and the health probe."""
