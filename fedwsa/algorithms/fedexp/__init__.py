"""FedExP: the server goes further where clients disagree."""
