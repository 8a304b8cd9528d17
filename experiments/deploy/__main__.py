"""``make deploy-demo``, or ``python -m experiments.deploy [--port PORT] [--keep FOLDER]``."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from fedwsa.command_line import Parser, in_one_line
from fedwsa.config.component import ConfigError

# The command is imported where interruptions are answered: it takes seconds.


def main() -> None:
    """Run the demonstration: every error ends in one line, and all programs with it."""
    parser = Parser(
        prog="python -m experiments.deploy",
        description="A server and two nodes as programs on 127.0.0.1, with TLS and keys.",
    )
    parser.add_argument("--port", type=int, help="of the server; default: a free one")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="leave keys, logs and runs there"
    )
    given = parser.parse_args(sys.argv[1:])
    with in_one_line("deploy-demo"), ExitStack() as stack:
        from experiments.deploy.demo import demonstrate
        from experiments.deploy.federation import variables
        from experiments.deploy.processes import Processes

        if given.keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedwsa-")))
        else:
            folder = given.keep.resolve()
            if folder.exists() and any(folder.iterdir()):
                raise ConfigError(f"--keep {given.keep}: is not empty; name another folder")
        processes = stack.enter_context(Processes(folder / "logs", variables(folder)))
        demonstrate(folder, given.port, processes, Console())


if __name__ == "__main__":
    main()
