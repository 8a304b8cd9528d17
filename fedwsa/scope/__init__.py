"""Weight scopes: mean and variance of each layer, the divergence of two, and their fusion."""
