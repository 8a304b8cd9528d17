"""The command ``fedwsa``: compose a run with Hydra, check it, simulate it, show the result."""

from __future__ import annotations

import logging
import math
import os
import shlex
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

# Set before Flower, Ray and Hydra are imported, which read them once.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"
os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing, so that main() can

import hydra
from hydra._internal.utils import get_args_parser  # there is no public one
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.logging import RichHandler

from experiments.commands import search
from experiments.commands.help import help_text
from experiments.commands.ray_start import RayStart
from experiments.commands.results import show
from fedwsa import interruption
from fedwsa.command_line import fail, of_system
from fedwsa.config.blame import telling_theirs, told
from fedwsa.config.component import ConfigError, flat
from fedwsa.config.explain import explain
from fedwsa.config.places import CONFIG_DIR
from fedwsa.config.search_path import register
from fedwsa.runfolder.read import read_json
from fedwsa.schema.compose import free_arguments, parse
from fedwsa.schema.config import Config

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

    from server.callbacks.choosing import Report
    from server.federation import Federation


_START = time.time()
_failures: list[str] = []  # numbers of the runs of a sweep that failed
_began: list[Path] = []  # run folders
console = Console()
logger = logging.getLogger("fedwsa")
_fail = partial(fail, "fedwsa")


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="config")
def _job(composed: DictConfig) -> float:
    """One run; returns what a sweeper that optimises may choose by, see :func:`_to_choose_by`."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    _began.append(folder)
    try:
        return _attempt(composed, folder)
    finally:
        _remove_if_empty(folder)


def _attempt(composed: DictConfig, folder: Path) -> float:
    """One run; what fails in a sweep is told, and the other runs go on."""
    from server.rounds import RunError

    interruption.check()
    swept = HydraConfig.get().mode is RunMode.MULTIRUN
    try:
        config, report = parse(composed), search.report_of_trial()
        return _to_choose_by(simulate(config, folder, pictures=True, report=report))
    except (ConfigError, RunError) as error:
        if _TRACEBACK:
            raise
        if not swept:
            _fail(str(error))  # here, since Hydra adds lines of its own to what a job raises
        return _failed(folder, str(error))
    except (Exception, SystemExit) as error:
        if _TRACEBACK or not swept:
            raise
        logger.debug("the run failed:", exc_info=error)
        return _failed(folder, told(error))


def _failed(folder: Path, reason: str) -> float:
    """Say why a run of a sweep failed, here and in its folder; the others go on."""
    from fedwsa.runfolder.write import write_failure

    interruption.check()  # what failed may be what a signal broke off
    number = HydraConfig.get().job.num
    _failures.append(str(number))
    print(f"fedwsa: run {number}: {reason}", file=sys.stderr, flush=True)
    write_failure(folder, reason)
    return math.nan


def _to_choose_by(result: dict[str, Any]) -> float:
    """Accuracy on the validation split, or without one on the clients' hold-outs; NaN if none.

    Never on the test set, which is there for the figure that is reported.
    """
    found = result.get("validation_accuracy", result.get("client_accuracy_mean"))
    return math.nan if found is None else float(found)


def simulate(
    config: Config,
    folder: Path,
    client_app: ClientApp | None = None,
    resumed: bool = False,
    pictures: bool = False,
    report: Report | None = None,
) -> dict[str, Any]:
    """Run a federation and leave a run folder.

    Everything that can be wrong with the configuration is found before anything is written.

    Parameters
    ----------
    config
        The run.
    folder
        Where its files go.
    client_app
        Another ClientApp than ours, which answers the same messages.
    resumed
        Whether the folder holds the beginning of this run, which goes on from its newest
        checkpoint.
    pictures
        Whether to draw them: a third of a second.
    report
        Of somebody who compares the run with others.

    Returns
    -------
    dict
        What ``result.json`` holds.

    Raises
    ------
    ConfigError
        If the configuration cannot work.
    RunError
        If the run cannot go on; the history so far is kept.
    """
    with telling_theirs(ConfigError):
        federation = _set_up(config, folder, resumed, report)
    _play(federation, client_app, folder, pictures)
    result = read_json(folder / "result.json")
    show(console, result, folder)
    return result


def _play(
    federation: Federation, client_app: ClientApp | None, folder: Path, pictures: bool
) -> None:
    """All rounds, and the pictures; of a run that ends early its folder says why."""
    from experiments.commands import runtimes
    from experiments.commands.runs import draw_pictures
    from fedwsa.runfolder.write import FAILED
    from server.folder import held
    from server.rounds import RunError

    label = federation.config.label
    with held(folder):
        (folder / FAILED).unlink(missing_ok=True)  # why it ended early is over
        try:
            with telling_theirs(RunError, ConfigError):
                runtimes.run(federation, client_app)
        except BaseException as error:
            _leave(folder, label, error, pictures)
            raise
        if pictures:
            draw_pictures(folder, label)


def _leave(folder: Path, label: str, error: BaseException, pictures: bool) -> None:
    """Why a run ended early, and its pictures so far; what fails here does not hide the reason."""
    from experiments.commands.runs import draw_pictures
    from fedwsa.runfolder.write import write_failure
    from server.rounds import RunError

    try:
        if isinstance(error, RunError):
            write_failure(folder, str(error))
        if pictures:
            draw_pictures(folder, label)
    except Exception as other:
        logger.warning("the run folder is incomplete: %s", told(other))


def _set_up(
    config: Config,
    folder: Path,
    resumed: bool,
    report: Report | None,
) -> Federation:
    """Everything that a run needs before its first round; its folder says what it is."""
    from experiments.commands import runtimes
    from server.federation import Federation
    from server.folder import describe_run

    _quiet_libraries()
    with console.status("reading the data ..."):
        config = runtimes.located(config)
        federation = Federation(config, folder, console, resumed, report=report)
    start = runtimes.start_ray(config)
    if config.runtime.address is not None:  # settling asks the cluster
        runtimes.await_ray(start)
    federation.settle(runtimes.settled(federation))
    interruption.check()
    if not resumed:
        partition, sizes = federation.data.partition, federation.known_sizes
        describe_run(federation.config, partition, folder, sizes)
    runtimes.await_ray(start)
    return federation


def resume(folder: Path) -> dict[str, Any]:
    """Go on with an interrupted run, from its newest checkpoint to its end.

    The same model and the same history, to the bit, as of a run that was not interrupted.

    Raises
    ------
    ConfigError
        If there is no run in the folder, it is finished, or it has no checkpoint.
    RunError
        If the run cannot go on.
    """
    from experiments.commands.runs import composed_config
    from server.folder import require_begun

    require_begun(folder)
    return simulate(composed_config(folder), folder, resumed=True, pictures=True)


def _resume(words: list[str]) -> None:
    """``fedwsa resume=RUN``."""
    from server.rounds import RunError

    if words[0] == "resume=":
        _fail("resume=RUN: name the folder of a run")
    if len(words) > 1:
        _fail("resume=RUN takes nothing beside it: the run folder has the whole configuration")
    folder = Path(words[0].partition("=")[2])
    _began.append(folder)
    try:
        resume(folder)
    except (ConfigError, RunError) as error:
        if _TRACEBACK:
            raise
        _fail(str(error))


def _quiet_libraries() -> None:
    """Keep Flower's log out of the progress display, unless FLWR_LOG_LEVEL asks for it."""
    if "FLWR_LOG_LEVEL" not in os.environ:
        logging.getLogger("flwr").setLevel(logging.CRITICAL)
    if not logger.handlers:
        handler = RichHandler(logging.INFO, console=console, show_time=False, show_path=False)
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)  # for run.log
        logger.propagate = False


def _remove_if_empty(folder: Path) -> None:
    """Leave no folder behind where Hydra made one for a run that was refused.

    Of the folders below the working directory, those that this process made or made one in.
    """
    below = [p for p in (folder, *folder.parents) if Path.cwd() in p.parents]
    for path in [p for p in below if p.stat().st_mtime >= _START]:
        try:
            path.rmdir()
        except OSError:
            return


def _interrupted() -> str:
    """What is left of a run that was interrupted, and how to go on."""
    folder = _began[-1] if _began else None
    if folder is None or not (folder / "history.csv").exists():
        return "interrupted before the first round"
    place = os.path.relpath(folder)
    again = ""
    if any((folder / "checkpoints").glob("round-*")):
        again = f"; it goes on by: fedwsa resume={shlex.quote(place)}"
    return f"interrupted; the history so far is in {place}{again}"


def _places_of_runs(words: list[str]) -> list[str]:
    """Where runs of another configuration than ours go, which does not say: where ours do."""
    if not any(word.startswith(("-cn", "--config-name")) for word in words):
        return []
    ours: Any = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "config.yaml"))
    places = dict(flat({"hydra": {kind: ours["hydra"][kind] for kind in ("run", "sweep")}}))
    given = {word.partition("=")[0] for word in words}
    wanted = {**places, "hydra.output_subdir": "null"}
    return [f"{key}={place}" for key, place in wanted.items() if key not in given]


def _require_known_options(words: list[str]) -> None:
    """Refuse in one line what Hydra's own parser refuses in twelve."""

    def refuse(message: str) -> NoReturn:
        _fail(f"{message}; keys have no dashes, as in rounds=5; fedwsa --help lists them")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args(words)  # which ends the process if it must


def main() -> None:
    """Entry point of ``fedwsa``: every error ends in one line and exit code 1."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        with suppress(BrokenPipeError):  # fedwsa --help | head
            print(help_text(), flush=True)
        return
    _require_known_options(sys.argv[1:])
    sys.argv[1:] = free_arguments([*sys.argv[1:], *_places_of_runs(sys.argv[1:])])
    sys.path.append(os.getcwd())  # a strategy, model or partition of one's own lies there
    register()  # and its yaml in conf/
    search.register()
    try:
        _run_in_one_line()
        interruption.check()
    except KeyboardInterrupt:
        if RayStart.pending():
            raise
        print(f"fedwsa: {_interrupted()}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        import ray

        ray.shutdown()
        # Flower's simulation waits for its clients in a thread that nothing stops.
        os._exit(interruption.code())


def _run_in_one_line() -> None:
    try:
        if any(word.startswith("resume=") for word in sys.argv[1:]):
            _resume(sys.argv[1:])
            return
        _job()
        if _failures:
            these = ", ".join(_failures)
            _fail(f"{len(_failures)} of the {len(_began)} runs failed: {these}")
    except (HydraException, OmegaConfBaseException) as error:
        if _TRACEBACK:
            raise
        _fail(explain(error, sys.argv[1:]))
    except ConfigError as error:  # of a search: a run has said it
        if _TRACEBACK:
            raise
        _fail(str(error))
    except OSError as error:  # the run folder: everything else says itself what it cannot do
        if _TRACEBACK:
            raise
        _fail(of_system(error))
    except Exception as error:
        if _TRACEBACK or _began:
            raise
        _fail(f"cannot compose {shlex.join(sys.argv[1:])}: {error}")  # unforeseen by Hydra: local=0


if __name__ == "__main__":
    main()
