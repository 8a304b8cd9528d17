"""What a person starts: the command line, comparisons, plots, benchmarks."""

import sys

from fedwsa import interruption

if sys.argv[:1] == ["-m"]:  # python -m experiments.…: Python is looking for the command's module
    interruption.watch("experiments")
