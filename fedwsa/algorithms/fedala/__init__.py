"""FedALA: each client begins between its own model and the one that all share."""
