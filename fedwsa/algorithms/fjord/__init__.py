"""FjORD: in each step a client trains a part of its network that is drawn by ordered dropout."""
