"""Entry point of ``fedwsa-learngene``: Ctrl-C is answered while everything is imported, too."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; see :mod:`experiments.learngene.cli`."""
    try:
        from experiments.learngene.cli import main as command

        command()
    except KeyboardInterrupt:
        print(
            "fedwsa-learngene: interrupted; distil and bench go on where they stopped when they "
            "are called again",
            file=sys.stderr,
        )
        sys.exit(130)


if __name__ == "__main__":
    main()
