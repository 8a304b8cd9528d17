"""SCAFFOLD: variates of the server and of each client correct the clients' drift."""
