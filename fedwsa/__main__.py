"""``python -m fedwsa``: the command ``fedwsa``."""

from fedwsa.launcher import simulate

if __name__ == "__main__":
    simulate()
