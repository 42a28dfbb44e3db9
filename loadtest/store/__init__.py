"""`python -m loadtest.store`: what the configuration store costs, how fast a commit arrives, what an outage does."""
