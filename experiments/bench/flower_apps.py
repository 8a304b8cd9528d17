"""Flower Apps on our engine and on Flower's simulation: whether both say the same, and how fast.

    python -m experiments.bench.flower_apps --made-hub APP_DIR APP_DIR=5 …

A number behind an app is how many supernodes it wants. What each prints of its results is compared
number by number. With ``--made-hub`` data sets of the Hub are made on the spot, and what apps draw
is keyed (:mod:`experiments.bench.made_hub.sitecustomize`).
"""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from fedwsa.apps.folder import AppFolder
from fedwsa.apps.play import Engine
from fedwsa.command_line import Parser, in_one_line
from fedwsa.launcher import APPS

_COMMAND = "from fedwsa.launcher import run; run()"
_MADE_HUB = Path(__file__).parent / "made_hub"
_ROUNDS = ("num-server-rounds", "num-rounds", "rounds")
_RESULTS = re.compile(r"aggregated|accuracy|loss|auc|histogram|survival|round \d+ ?[:>-]", re.I)
_NUMBER = re.compile(r"(?<![\w.])-?\d+\.?\d*(?:e[+-]?\d+)?(?![\w.])", re.I)
# When a line was written, and how long a fit of Flower's older loop took so far.
_TIMES = re.compile(r"\d\d/\d\d/\d{4} \d\d:\d\d:\d\d|(?<=fit progress: ).*, [\d.]+(?=\)$)")
_COLOUR = re.compile(r"\x1b\[\d*m")


@dataclass(frozen=True)
class Played:
    """What came of an app on one engine.

    Attributes
    ----------
    code : int
        The command's exit code; 124: its time was over.
    seconds : float
        From the command to its end.
    numbers : tuple of float
        What it printed of its results.
    last : str
        Its last line.
    """

    code: int
    seconds: float
    numbers: tuple[float, ...]
    last: str


def played(app: AppFolder, supernodes: int, engine: Engine, asked: argparse.Namespace) -> Played:
    """Run an app once, in a folder that is thrown away."""
    rounds = [f"{key}={asked.rounds}" for key in _ROUNDS if key in app.config]
    words = [str(app.path), "-n", str(supernodes), "--engine", engine]
    words += ["--federation-config", "client-resources-num-cpus=1"]
    words += ["-c", rounds[0]] if rounds else []
    places = [str(APPS), *([str(_MADE_HUB)] if asked.made_hub else [])]
    places += filter(None, [os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        try:
            done = subprocess.run(
                [asked.python, "-c", _COMMAND, *words],
                cwd=folder,
                env=environment | {"FLWR_TELEMETRY_ENABLED": "0"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=asked.timeout,
                check=False,
            )
            code, said = done.returncode, done.stdout
        except subprocess.TimeoutExpired as late:
            code, said = 124, late.stdout.decode() if isinstance(late.stdout, bytes) else ""
        seconds = time.monotonic() - start
    lines = [_COLOUR.sub("", line) for line in said.splitlines()]
    lines = [line for line in lines if line.strip() and "pid=" not in line]
    return Played(code, seconds, tuple(numbers(lines)), lines[-1] if lines else "")


def numbers(lines: Sequence[str]) -> list[float]:
    """The numbers in the lines that tell results, in their order; times are none."""
    telling = [line for line in lines if _RESULTS.search(line) and "finished" not in line]
    timeless = [_TIMES.sub(_without_seconds, line) for line in telling]
    return [float(number) for line in timeless for number in _NUMBER.findall(line)]


def _without_seconds(found: re.Match[str]) -> str:
    return found[0].rpartition(",")[0]


def alike(one: Played, other: Played) -> bool:
    """Whether both engines printed the same results, to the digits that are printed."""
    pairs = zip(one.numbers, other.numbers, strict=False)
    return len(one.numbers) == len(other.numbers) and all(
        math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4) for a, b in pairs
    )


def row(app: AppFolder, found: dict[Engine, Played]) -> str:
    """A line of the table."""
    name = app.identity.split("/")[-1]
    if any(played.code for played in found.values()):
        ends = [f"{k}: {p.last[:60] if p.code else 'works'}" for k, p in found.items()]
        return f"| {name} | {', '.join(ends)} | | | | |"
    ours, theirs = found["fedwsa"], found["flower"]
    equal = f"equal ({len(ours.numbers)} numbers)" if alike(ours, theirs) else "differ"
    columns = [name, "both work", equal if ours.numbers else "prints none"]
    columns += [f"{seconds:.1f}" for seconds in (ours.seconds, theirs.seconds)]
    return f"| {' | '.join(columns)} | {theirs.seconds / ours.seconds:.1f} |"


def main() -> None:
    """Run the benchmark."""
    with in_one_line("flower_apps"):
        parser = Parser("flower_apps", __doc__ or "")
        parser.add_argument("apps", nargs="+", metavar="APP_DIR[=N]")
        parser.add_argument("--made-hub", action="store_true", help="make the Hub's data sets here")
        parser.add_argument("--rounds", type=int, default=3, help="where the app has such a key")
        parser.add_argument("--python", default=sys.executable, help="where its packages are")
        parser.add_argument("--timeout", type=float, default=300.0, help="seconds for a run")
        asked = parser.parse_args()
        apps = [word.partition("=") for word in asked.apps]
        folders = [(AppFolder.read(Path(place)), int(count or 2)) for place, _, count in apps]
        print("| app | | results | fedwsa, s | Flower, s | ratio |")
        print("|---|---|---|---|---|---|")
        for app, count in folders:
            found = {e: played(app, count, e, asked) for e in get_args(Engine)}
            print(row(app, found), flush=True)


if __name__ == "__main__":
    main()
