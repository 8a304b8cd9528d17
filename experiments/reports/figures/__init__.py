"""Pictures of runs, fit for a paper."""
