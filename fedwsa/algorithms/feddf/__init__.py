"""FedDF: the server distils the clients' ensemble, on examples of its own."""
