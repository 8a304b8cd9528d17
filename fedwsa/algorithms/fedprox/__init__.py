"""FedProx: clients are pulled to the model that they received; the server is Flower's."""
