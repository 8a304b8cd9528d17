"""The Flower ClientApp: local training and evaluation of one client."""
