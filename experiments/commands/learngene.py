"""Entry point of ``fedwsa-learngene``: Ctrl-C is answered while everything is imported, too."""

from __future__ import annotations

from fedwsa import interruption
from fedwsa.command_line import in_one_line

# The command is imported where interruptions are answered: it takes seconds.

_INTERRUPTED = "interrupted; distil and bench go on where they stopped when they are called again"


def main() -> None:
    """Run the command; see :mod:`experiments.learngene.cli`."""
    with in_one_line("fedwsa-learngene", _INTERRUPTED):
        from experiments.learngene.cli import main as command

        interruption.check()
        command()


if __name__ == "__main__":
    main()
