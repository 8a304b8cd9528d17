"""What clients do that wish the federation ill: to their data, or to the model that they send."""
