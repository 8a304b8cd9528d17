"""Less to send: updates that are compressed, with a memory of what was left out."""
