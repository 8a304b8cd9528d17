"""Tables of runs: means over seeds, differences, tests."""
