"""What happens beside the algorithm: history, scopes, progress."""
