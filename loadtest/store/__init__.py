"""`python -m loadtest.store`: what the store costs, how fast a commit arrives, what an outage does."""
