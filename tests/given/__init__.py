"""What several tests are given: apps, data, run folders, parts of a run that fail."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""
