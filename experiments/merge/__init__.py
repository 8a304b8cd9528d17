"""The command ``fedwsa-merge``."""
