"""The command ``fedwsa-learngene``."""
