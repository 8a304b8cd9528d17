"""Early exits: classifiers on the way, which learn from each other on the client."""
