"""FedDyn: each client's own linear term, and the server's of all."""
