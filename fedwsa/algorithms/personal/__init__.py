"""Models of which a part stays with each client."""
