"""Flower Apps in folders of their own, as ``flwr run`` takes them, on our engine."""
