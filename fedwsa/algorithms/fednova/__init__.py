"""FedNova: updates are divided by how far their local steps could go."""
