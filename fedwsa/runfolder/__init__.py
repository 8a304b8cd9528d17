"""The files that a run leaves, each of them whole or not there."""
