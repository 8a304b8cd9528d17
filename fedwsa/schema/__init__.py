"""What a run is: its schema, composed from ``conf/``, and what follows from it for each client."""
