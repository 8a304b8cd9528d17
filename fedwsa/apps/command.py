"""Entry point of ``fedwsa-run``: a Flower App in its folder, on our engine."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from pathlib import Path

from fedwsa import interruption
from fedwsa.apps.folder import AppFolder, federation_of
from fedwsa.apps.play import SUPERNODES, play
from fedwsa.command_line import Parser, fail, in_one_line
from fedwsa.config.component import ConfigError
from fedwsa.descendants import end_descendants
from fedwsa.simulation.cluster import SimulationError

_COMMAND = "fedwsa-run"
_EPILOG = f"""\
examples:
  fedwsa-run .                                    the app in this folder, {SUPERNODES} supernodes
  fedwsa-run my-app -n 100 -c 'num-server-rounds=5 learning-rate=0.1'
  fedwsa-run my-app -n 100 --engine flower        the same on Flower's simulation, to compare

The app runs where it stands, with the files that it has; what it writes lands in the folder where
you call. --federation-config has Flower's names: num-supernodes, client-resources-num-cpus,
client-resources-num-gpus, init-args-num-cpus, init-args-num-gpus, init-args-logging-level,
init-args-log-to-driver, verbose.
"""


_HELP = {
    "federation": "one that its pyproject.toml or Flower's config.toml has (default: the app's)",
    "run": "'a=1 b=\"x\"', or the name of a TOML file",
    "others": "'num-supernodes=10 …', see below",
    "workers": "processes that play clients (default: as many as fit)",
    "cohort": "how many clients a worker trains at once, if the app is a CohortApp",
    "stream": "accepted as by `flwr run`: what happens is always shown",
}


def main() -> None:
    """Run the command."""
    try:
        _main()
    except SystemExit:
        if interruption.asked():  # Ray may just be starting: its programs would be left, or crash
            end_descendants(os.getpid())
            os._exit(interruption.code())
        raise


def _main() -> None:
    with in_one_line(_COMMAND):
        asked = _parser().parse_args()
        _say()
        app = AppFolder.read(asked.app)
        config = app.configured(asked.run_config)
        federation = federation_of(app, asked.federation, _federation_words(asked))
        try:
            play(app, config, federation, asked.engine, asked.workers, asked.cohort)
        except (ConfigError, KeyboardInterrupt):
            raise
        except SimulationError as error:
            fail(_COMMAND, str(error))
        except BaseException as error:
            _tell(error, app.path)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        _COMMAND,
        "Run a Flower App as `flwr run` does, on fedwsa's engine.",
        _EPILOG,
    )
    add = parser.add_argument
    add("app", nargs="?", type=Path, default=Path(), help="folder of the app (default: this one)")
    add("federation", nargs="?", help=_HELP["federation"])
    for words, key in ((["-c", "--run-config"], "run"), (["--federation-config"], "others")):
        add(*words, action="append", default=[], metavar="PAIRS", help=_HELP[key])
    add("-n", "--num-supernodes", type=_count, metavar="N", help="how many clients there are")
    add("--engine", choices=["fedwsa", "flower"], default="fedwsa", help="what plays the clients")
    add("--workers", type=_count, metavar="N", help=_HELP["workers"])
    add("--cohort", type=_count, default=1, metavar="K", help=_HELP["cohort"])
    add("--stream", action="store_true", help=_HELP["stream"])
    return parser


def _say() -> None:
    """Let lines of this package stand among Flower's, on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{_COMMAND}: %(message)s"))
    logger = logging.getLogger("fedwsa")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number above 0")
    return int(text)


def _federation_words(asked: argparse.Namespace) -> list[str]:
    words: list[str] = list(asked.federation_config)
    if asked.num_supernodes is not None:
        words.append(f"num-supernodes={asked.num_supernodes}")
    return words


def _tell(error: BaseException, app: Path) -> None:
    """Show what the app raised, from its own first line on, and end as Python does.

    Raises
    ------
    SystemExit
        With what the app ends with, or 1.
    """
    if isinstance(error, SystemExit):
        sys.exit(error.code)
    trace = error.__traceback__
    while trace is not None and not Path(trace.tb_frame.f_code.co_filename).is_relative_to(app):
        trace = trace.tb_next
    interruption.check()
    traceback.print_exception(type(error), error, trace or error.__traceback__)
    fail(_COMMAND, f"the app in {app} raised {type(error).__name__}")
