"""A model of each client's own beside the one that all share."""
