"""What travels: the names of records and keys, and arrays on their way."""
