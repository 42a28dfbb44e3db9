"""What faces the client and the operator: listener, connections, admission, access log, admin."""
