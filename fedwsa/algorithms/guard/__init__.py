"""What is refused of the clients' answers, and what a round does without them."""
