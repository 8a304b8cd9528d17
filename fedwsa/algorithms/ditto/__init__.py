"""Ditto: a model of each client's own, pulled to the one that all share."""
