"""Studies: a grid of runs named in one file, run in parallel, resumed, tabulated and drawn."""
