"""Knowledge of a large network, from which networks of other sizes are initialised."""
