"""The Flower ServerApp: round loop, evaluation, what is written."""
