"""Flower strategies: the server halves of the algorithms that Flower does not ship."""
