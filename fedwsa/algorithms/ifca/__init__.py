"""IFCA: several models, of which each client takes the one that suits it best."""
