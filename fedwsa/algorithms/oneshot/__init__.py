"""One-shot federated learning: clients train once, the server merges their models."""
