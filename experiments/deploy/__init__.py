"""A federation of separate programs: keys and certificates, processes, a demonstration."""
