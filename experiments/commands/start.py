"""Entry point of ``fedwsa``: Ray starts while everything else is imported."""

from __future__ import annotations

import os
import sys
import traceback

from experiments.commands.ray_start import RayStart, early_workers, expects_local_ray
from fedwsa import interruption
from fedwsa.descendants import end_descendants

# The command is imported where interruptions are answered: it takes seconds.


def main() -> None:
    """Run the command; see :mod:`experiments.commands.simulate`."""
    try:
        with interruption.starting(lambda: end_descendants(os.getpid())):
            if expects_local_ray(sys.argv[1:]):
                RayStart.at(None, early_workers(sys.argv[1:]))
            from experiments.commands.simulate import main as command

        interruption.check()
        command()
        interruption.check()
    except SystemExit as refused:
        RayStart.abandon(refused.code)
        raise
    except BaseException as error:
        if interruption.asked() or isinstance(error, KeyboardInterrupt):  # before a run has begun
            print("fedwsa: interrupted", file=sys.stderr)
            RayStart.abandon(interruption.code())
            sys.exit(interruption.code())
        if RayStart.pending():  # HYDRA_FULL_ERROR=1 wants the traceback, and
            # a thread that still starts Ray would crash Python's own end
            traceback.print_exc()
            RayStart.abandon(1)
        raise


if __name__ == "__main__":
    main()
