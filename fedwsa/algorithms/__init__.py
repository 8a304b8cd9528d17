"""Algorithms: of each what the server does and what the clients do, side by side."""
