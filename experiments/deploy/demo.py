"""The demonstration: a federation of programs learns what its simulation learns, to rounding."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file

from experiments.deploy.federation import LocalFederation
from experiments.deploy.processes import Processes
from fedwsa.config.component import ConfigError
from fedwsa.runfolder.files import whole_lines

NODES = 2
OVERRIDES = [
    "rounds=3",
    f"clients.count={NODES}",
    "clients.timeout=600",
    "wsa=on",
    "device=cpu",
    "runtime.workers=1",
    "runtime.cohort=off",
]
_RTOL, _ATOL = 1e-4, 1e-6  # single precision, summed in another order
_PATIENCE = 1500.0  # seconds for the whole run: each message starts a process at its node
_ASK = 10.0  # seconds between questions for the run's status


def demonstrate(folder: Path, port: int | None, processes: Processes, console: Console) -> None:
    """Run three rounds as programs and as a simulation, and compare their models.

    Raises
    ------
    ConfigError
        If anything does not start or end as it should, or the models differ.
    """
    federation = LocalFederation(folder, processes, NODES + 1, port)
    with console.status("starting the server ...") as status:
        federation.start_server()
        console.print(f"server: https://127.0.0.1:{federation.port}")
        status.update("registering the nodes' keys ...")
        for node in range(NODES):
            federation.register(node)
            name = f"node-{node}"
            federation.start_node(name, {"partition-id": node}, federation.keys / name)
        federation.start_node("stranger", {"partition-id": 0}, federation.keys / f"node-{NODES}")
        status.update("handing the run to the server ...")
        start = time.monotonic()
        run = federation.submit(" ".join(OVERRIDES))
        command = f"flwr run . NAME -c 'overrides=\"{' '.join(OVERRIDES)}\"'"
        console.print(f"run {run}: {command}", soft_wrap=True)  # to be copied as it stands
        simulated = folder / "simulation"
        words = ["-m", "fedwsa", *OVERRIDES, f"hydra.run.dir={simulated}"]
        processes.start("simulation", [sys.executable, *words])
        status.update("the nodes come ...")
        seconds = watch(federation, run, console, start)
        status.update("the simulation of the same run ...")
        processes.wait(
            "the simulation", lambda: processes.code("simulation") is not None, _PATIENCE
        )
        if processes.code("simulation"):
            raise ConfigError(f"the simulation failed: {processes.last_line('simulation')}")
        status.update("the stranger gives up ...")
        processes.wait("the stranger", lambda: processes.code("stranger") is not None, _PATIENCE)
    compare(federation.run_folder(run), simulated, console)
    said = f"stranger, whose key nobody registered: {refusal(processes)}"
    console.print(said, soft_wrap=True, markup=False)
    rounds = " ".join(f"{s:.1f}" for s in seconds)
    console.print(f"seconds from the start of the run to the end of each round: {rounds}")


def watch(federation: LocalFederation, run: int, console: Console, start: float) -> list[float]:
    """Show each round of a run as it ends; returns when, in seconds since ``start``.

    Raises
    ------
    ConfigError
        If the run does not end well.
    """
    table, done = (
        federation.run_folder(run) / "history.csv",
        federation.run_folder(run) / "result.json",
    )
    ends: list[float] = []
    asked = time.monotonic()
    while not done.exists():
        if time.monotonic() - start > _PATIENCE:
            raise ConfigError(f"the run did not end in {_PATIENCE:g} s")
        if time.monotonic() - asked > _ASK:
            stands, why = federation.status(run)
            if stands.startswith("finished") and not stands.endswith("completed"):
                raise ConfigError(f"the run ended as {stands}: {why}")
            asked = time.monotonic()
        show(table, ends, start, console)
        time.sleep(0.5)
    show(table, ends, start, console)
    return ends


def show(table: Path, ends: list[float], start: float, console: Console) -> None:
    """The rounds in a ``history.csv`` that were not shown yet."""
    if not table.exists():
        return
    head, *rows = (line.split(",") for line in whole_lines(table).splitlines())
    for row in rows[len(ends) :]:
        ends.append(time.monotonic() - start)
        of = dict(zip(head, row, strict=False))
        console.print(
            f"round {of['round']}: accuracy {float(of['accuracy']):.4f}  ({ends[-1]:.1f} s)"
        )


def compare(deployed: Path, simulated: Path, console: Console) -> None:
    """Show by how much two models differ.

    Raises
    ------
    ConfigError
        If it is more than rounding.
    """
    models = [load_file(folder / "model.safetensors") for folder in (deployed, simulated)]
    if models[0].keys() != models[1].keys():
        raise ConfigError("the models have different layers")
    pairs = [(models[0][name], models[1][name]) for name in models[0]]
    apart = max(float((a - b).abs().max()) for a, b in pairs)
    if not all(torch.allclose(a, b, _RTOL, _ATOL) for a, b in pairs):
        raise ConfigError(f"the models differ by up to {apart:.3g}, which is more than rounding")
    console.print(f"the model is the simulation's: allclose, largest difference {apart:.3g}")


def refusal(processes: Processes) -> str:
    """What the unregistered node was told.

    Raises
    ------
    ConfigError
        If it was let in.
    """
    if not processes.code("stranger"):
        raise ConfigError("a node whose key nobody registered was not refused")
    return processes.last_line("stranger")
