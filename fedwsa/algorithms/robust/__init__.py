"""Averages of updates that some liars among the clients cannot move far."""
