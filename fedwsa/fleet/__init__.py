"""The clients as devices: which size each has, how fast it is, under which conditions it trains."""
