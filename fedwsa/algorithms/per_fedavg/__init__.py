"""Per-FedAvg: a model from which each client gets far by one step."""
