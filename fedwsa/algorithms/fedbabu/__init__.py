"""FedBABU: only the body is trained."""
