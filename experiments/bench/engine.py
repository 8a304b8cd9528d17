"""The engine's speed, against Flower's simulation and against no framework at all.

Usage: ``python -m experiments.bench.engine [--workload NAME] [--json FILE] [--repeat N]
[--device cuda] [--rivals PYTHON]``

With ``--rivals``, pfl-research and BlazeFL run the CNN workloads too: they need an environment of
their own, since pfl and Flower want different versions of a package, and BlazeFL Python 3.12.
``device-50`` and the like train on any device, beside the limit: the same work in one stack,
without a framework. On a CPU they are run where they are named.

Every ratio is of speeds measured in one run on the same machine, ours over theirs: above one,
ours is faster. The sides take turns; a side's time is the median over its rounds.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import pandas as pd
from rich.console import Console
from rich.table import Column, Table
from torch import nn

import experiments.commands.simulate
from experiments.bench import workloads
from experiments.bench.limit import limit_seconds
from experiments.bench.loop import loop_seconds
from experiments.bench.memory import fleet, peak_memory
from experiments.bench.timing import in_turn
from experiments.bench.workloads import TRAININGS
from fedwsa.data.federated import open_federated
from fedwsa.launcher import APPS
from fedwsa.models import build_model
from fedwsa.runfolder.files import write_text
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config

# Ray and Flower's simulation are imported where a side is timed: each side starts its own.

console = Console(stderr=True)

FLEETS = {"fleet-100000": 100_000, "fleet-1000000": 1_000_000}
"""Numbers of clients, of whom 500 train in the round that is timed."""

_SAMPLED = 500


@dataclass
class Result:
    """A row of the table.

    Attributes
    ----------
    workload : str
        Its name.
    seconds : float
        Ours: of a round, to the end of round 1 (``start``, fleets), or, of ``memory``, megabytes.
    flower_ratio, loop_ratio, pfl_ratio, blazefl_ratio, limit_ratio : float or None
        Speed over that of Flower's simulation, a plain loop, pfl, the faster of BlazeFL's two ways,
        and the limit; None where not run.
    """

    workload: str
    seconds: float
    flower_ratio: float | None = None
    loop_ratio: float | None = None
    pfl_ratio: float | None = None
    blazefl_ratio: float | None = None
    limit_ratio: float | None = None


def main() -> None:
    """Run the benchmark and print its table."""
    names = [*TRAININGS, "echo", "start", "memory", *FLEETS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=names, action="append", help="default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--repeat", type=int, default=2, help="turns that each side takes")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for training")
    parser.add_argument(
        "--rivals", metavar="PYTHON", help="Python of an environment with pfl and BlazeFL"
    )
    arguments = parser.parse_args()
    if arguments.rivals and not shutil.which(arguments.rivals):
        parser.error(f"--rivals: there is no program {arguments.rivals}")
    experiments.commands.simulate.console.quiet = True
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    results = []
    usual = [n for n in names if arguments.device != "cpu" or not n.startswith("device-")]
    for name in arguments.workload or usual:
        console.print(f"[bold]{name}[/bold] ...")
        results.append(_run(name, arguments.repeat, arguments.device, arguments.rivals))
        console.print(_table(results[-1:]))
    Console().print(_table(results))
    if arguments.json:
        text = json.dumps([asdict(r) for r in results], indent=2) + "\n"
        write_text(arguments.json, text)


def _run(name: str, repeat: int, device: str, rivals: str | None) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        if name == "echo":
            return _echo(repeat)
        if name == "start":
            return _start(Path(folder), repeat)
        if name == "memory":
            return _memory(Path(folder))
        if name in FLEETS:
            return _fleet(name, Path(folder), repeat)
        return _training(name, Path(folder), repeat, device, rivals)


def _training(name: str, folder: Path, repeat: int, device: str, rivals: str | None) -> Result:
    training = TRAININGS[name]

    def config(runtime: str) -> Config:
        workers = len(os.sched_getaffinity(0))
        return compose(
            [
                *training.overrides,
                *(training.flower if runtime == "flower" else training.ours),
                f"rounds={training.rounds + 1}",
                f"evaluation.every={training.rounds + 1}",
                f"cache_dir={folder / 'cache'}",
                f"runtime={runtime}",
                f"runtime.workers={workers}",
                f"device={device}",
            ]
        )

    def simulate(runtime: str, turn: int) -> list[float]:
        run = folder / f"{runtime}-{turn}"
        experiments.commands.simulate.simulate(config(runtime), run)
        timing = pd.read_csv(run / "timing.csv")
        return (timing["train"] + timing["aggregate"]).tolist()[1:]

    sides: dict[str, Callable[[int], list[float]]] = {
        "ours": lambda turn: simulate("ray", turn),
        "flower": lambda turn: simulate("flower", turn),
    }
    if device == "cpu":
        sides["loop"] = lambda _: loop_seconds(config("ray"), training.rounds)
    if training.limit is not None:
        count = training.limit
        sides["limit"] = lambda _: limit_seconds(
            _network(config("ray")), count, training.rounds, device
        )
    if rivals and name in _RIVALS_RUN:
        sides |= _rivals(rivals, training.rounds, device)
    times = in_turn(sides, repeat, _told)
    found = {side: seconds / times["ours"] for side, seconds in times.items()}
    blazefl = [found[side] for side in _BLAZEFL if side in found]
    return Result(
        name,
        times["ours"],
        found["flower"],
        found.get("loop"),
        found.get("pfl"),
        min(blazefl, default=None),
        found.get("limit"),
    )


def _network(config: Config) -> nn.Module:
    whole = open_federated(config.data_spec).whole
    return build_model(config.model, whole.shape, whole.classes, config.seed)


_RIVALS_RUN = ("cnn", "device-50-dropout")  # the same work
_BLAZEFL = ("BlazeFL, threads", "BlazeFL, processes")


def _rivals(python: str, rounds: int, device: str) -> dict[str, Callable[[int], list[float]]]:
    """pfl, with a process per core, of which there can be one on a GPU, and BlazeFL's two ways."""
    processes = len(os.sched_getaffinity(0)) if device == "cpu" else 1
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    pfl = [*launcher, "-m", "experiments.bench.pfl_side", str(rounds)]
    sides: dict[str, Callable[[int], list[float]]] = {"pfl": lambda _: _seconds(python, pfl)}
    for name in _BLAZEFL:
        kind = name.rpartition(" ")[2]
        words = ["-m", "experiments.bench.blaze_side", kind, str(rounds), device]
        if kind == "threads" or device == "cpu":  # forked processes have no GPU
            sides[name] = lambda _, words=words: _seconds(python, words)  # type: ignore[misc]
    return sides


def _seconds(python: str, words: Sequence[str]) -> list[float]:
    """Of each round, which a program of another environment prints last."""
    done = subprocess.run(
        [python, *words],
        env={**os.environ, "PYTHONPATH": str(APPS), "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def _told(name: str, seconds: float) -> None:
    console.print(f"  {name}: {seconds:.3f} s")


def _echo(repeat: int) -> Result:
    import ray
    from flwr import simulation as flower

    from fedwsa.simulation import run_simulation

    def ours(_: int) -> list[float]:
        seconds: list[float] = []
        run_simulation(
            workloads.echo_server(seconds), workloads.echo_client(), workloads.ECHO_CLIENTS
        )
        return seconds[1:]

    def flowers(_: int) -> list[float]:
        seconds: list[float] = []
        if ray.is_initialized():
            ray.shutdown()
        flower.run_simulation(
            workloads.echo_server(seconds),
            workloads.echo_client(),
            workloads.ECHO_CLIENTS,
            backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
        )
        return seconds[1:]

    times = in_turn({"ours": ours, "flower": flowers}, repeat, _told)
    return Result("echo", times["ours"], times["flower"] / times["ours"])


def _start(folder: Path, repeat: int) -> Result:
    """From the command to the end of round 1, on digits."""

    def side(runtime: str) -> Callable[[int], list[float]]:
        def run(turn: int) -> list[float]:
            words = [f"runtime={runtime}", "rounds=1"]
            return [_first_round(words, folder / f"{runtime}-{turn}", folder / "cache")]

        return run

    _first_round(["rounds=1"], folder / "warm", folder / "cache")  # decodes the data
    times = in_turn({"ours": side("ray"), "flower": side("flower")}, repeat, _told)
    return Result("start", times["ours"], times["flower"] / times["ours"])


def _fleet(name: str, folder: Path, repeat: int) -> Result:
    """From the command to the end of round 1 with very many clients, and their memory."""
    cache = folder / "cache"
    many, few = (
        [*fleet(count, _SAMPLED, 2 * FLEETS[name]), "rounds=1"] for count in (FLEETS[name], 1000)
    )
    _first_round(many, folder / "warm", cache)  # decodes the data
    seconds = [_first_round(many, folder / f"many-{turn}", cache) for turn in range(repeat)]
    _told("ours", median(seconds))
    peaks = [
        peak_memory(words, folder / f"memory-{number}", cache)
        for number, words in enumerate((few, many))
    ]
    console.print(f"  1,000 clients: {peaks[0]:.0f} MB, {FLEETS[name]:,}: {peaks[1]:.0f} MB")
    return Result(name, median(seconds))


def _first_round(words: Sequence[str], folder: Path, cache: Path) -> float:
    overrides = [*words, f"hydra.run.dir={folder}", f"cache_dir={cache}"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "fedwsa", *overrides],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    seconds = 0.0
    for line in process.stdout:
        if "round   1/1" in line:
            seconds = time.perf_counter() - start
    if process.wait() or not seconds:
        raise RuntimeError(f"fedwsa {' '.join(overrides)} failed")
    return seconds


def _memory(folder: Path) -> Result:
    """Peak memory with 10,000 clients over that with 100; 100 a round in both."""
    few, many = (
        peak_memory([*fleet(count, 100, 50_000), "rounds=5"], folder / str(count), folder / "cache")
        for count in (100, 10_000)
    )
    console.print(f"  100 clients: {few:.0f} MB, 10,000 clients: {many:.0f} MB")
    console.print(f"  ratio {many / few:.3f} (at most 1.15)")
    return Result("memory", many / few)


def _table(results: list[Result]) -> Table:
    rivals = ("× Flower", "× plain loop", "× pfl", "× BlazeFL", "× limit")
    table = Table(Column("workload", no_wrap=True), "seconds", *rivals, "target")
    targets = {name: training.target for name, training in TRAININGS.items()}
    targets |= {
        "echo": "flower ≥ 12",
        "start": "flower ≥ 1.43",
        "memory": "ratio ≤ 1.15",
        "fleet-100000": "12 s at most",
        "fleet-1000000": "25 s at most",
    }
    for r in results:
        found = (r.flower_ratio, r.loop_ratio, r.pfl_ratio, r.blazefl_ratio, r.limit_ratio)
        ratios = ["–" if x is None else f"{x:.2f}" for x in found]
        table.add_row(r.workload, f"{r.seconds:.3f}", *ratios, targets[r.workload])
    return table


if __name__ == "__main__":
    main()
