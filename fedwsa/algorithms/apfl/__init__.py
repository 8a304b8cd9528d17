"""APFL: each client answers by a mixture of its own model and the one that all share."""
