"""The clients as devices, in rules: which size each has, how fast it is, when it is there."""
