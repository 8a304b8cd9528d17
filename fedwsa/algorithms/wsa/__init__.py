"""Weight scope alignment: clients are pulled to a scope that the server fuses from theirs."""
