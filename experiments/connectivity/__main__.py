"""Entry point: Ctrl-C is answered while everything is imported, too."""

from __future__ import annotations

from fedwsa import interruption
from fedwsa.command_line import in_one_line

# The command is imported where interruptions are answered: it takes seconds.

_INTERRUPTED = "interrupted; finished pairs are kept, and the same command goes on"


def main() -> None:
    """Run the command; see :mod:`experiments.connectivity.cli`."""
    with in_one_line("experiments.connectivity", _INTERRUPTED):
        from experiments.connectivity.cli import main as command

        interruption.check()
        command()


if __name__ == "__main__":
    main()
