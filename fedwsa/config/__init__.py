"""What a run is asked to be: its schema, and how it is composed from ``conf/`` and words."""
