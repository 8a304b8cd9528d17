"""What a person starts: the command line, comparisons, plots, benchmarks."""
