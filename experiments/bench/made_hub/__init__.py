"""Data sets of the Hub's shapes, made on the spot, for apps that would fetch them."""
