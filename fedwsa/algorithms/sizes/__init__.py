"""Clients of several sizes: what each gets of the largest model, and how the parts are averaged."""
