"""What server and clients both remember: a client's state counts once its answer was accepted."""
