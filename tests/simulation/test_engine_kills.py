"""A worker that dies while it answers: at each object of its stream."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import ray
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from safetensors.torch import load_file

from experiments.commands.simulate import simulate
from fedwsa.algorithms.averaging import averaged
from fedwsa.schema.compose import compose
from fedwsa.simulation import pool, run_simulation, worker
from fedwsa.simulation.cluster import connect
from fedwsa.simulation.orders import Job
from fedwsa.simulation.worker import Worker

CLIENTS = 3


class Mortal(Worker):
    """Dies once in a round that a file is named after, instead of sending the object it says."""

    place: ClassVar[Path] = Path(os.environ.get("FEDWSA_TEST_KILL", "/nowhere"))

    def run(self, job: Job) -> Iterator[object]:
        worker._FLUSH_SECONDS = math.inf  # all rows in one part, however long they take
        records = [record for content in job.contents for record in content.values()]
        configs = [record for record in records if isinstance(record, ConfigRecord)]
        order = self.place / str(next((c["server-round"] for c in configs), None))
        for number, thing in enumerate([*super().run(job), None]):
            if order.exists() and int(order.read_text()) == number:
                order.unlink()
                with (self.place / "killed").open("a") as file:
                    file.write(f"{'end' if thing is None else type(thing).__name__} ")
                os.kill(os.getpid(), signal.SIGKILL)
            if thing is not None:
                yield thing


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ray_of_mortals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("kills")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "Worker", Mortal)
        patch.setenv("FEDWSA_TEST_KILL", str(place))  # Ray's workers inherit it
        ray.shutdown()
        connect(None, num_cpus=1)
        yield place
        ray.shutdown()


@pytest.fixture
def place(ray_of_mortals: Path) -> Iterator[Path]:
    yield ray_of_mortals
    for file in ray_of_mortals.iterdir():
        file.unlink()


def remembering() -> ClientApp:
    """Counts its trainings in its state, and answers with the count."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        before = context.state.get("w")
        count = (0.0 if before is None else float(before["w"].numpy()[0])) + 1
        arrays = ArrayRecord({"w": Array(np.full(3, count, np.float32))})
        context.state["w"] = arrays
        weight = int(context.node_config["partition-id"]) + 1
        metrics = MetricRecord({"num-examples": weight})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        return Message(content, reply_to=message)

    return app


@pytest.mark.parametrize("average", [False, True])
def test_a_worker_killed_at_each_object_of_its_stream_loses_nothing(
    average: bool, place: Path
) -> None:
    server = ServerApp()
    # A part with all rows, what each client keeps, the closing answer, the end of the stream.
    kinds = ["Answers", *["Kept"] * CLIENTS, "Answers", "end"]

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        for number in range(len(kinds) + 1):  # the last round is one that nobody disturbs
            (place / str(number)).write_text(str(number))
            arrays = ArrayRecord({"w": Array(np.zeros(3, np.float32))})
            content = RecordDict({"arrays": arrays, "c": ConfigRecord({"server-round": number})})
            sent = [Message(content, node, "train") for node in sorted(grid.get_node_ids())]
            given = grid.send_and_receive(averaged(FedAvg(), sent) if average else sent)
            rows = getattr(given, "rows", given)
            assert all(row.has_content() for row in rows)
            assert [row.content["metrics"]["num-examples"] for row in rows] == [1, 2, 3]
            mean, _ = FedAvg().aggregate_train(1, list(given))
            assert mean["w"].numpy().tolist() == [number + 1.0] * 3
            # All are in the average: their weights add up to 1 + 2 + 3.
            parts = [r.content["metrics"]["num-examples"] for r in given if r.has_content()]
            assert sum(parts) == 6
            states = grid.client_states()
            kept = {p: float(s["w"]["w"].numpy()[0]) for p, s in states.items()}
            assert kept == dict.fromkeys(range(CLIENTS), number + 1.0)

    # Without work to divide, the plan is one job.
    run_simulation(server, remembering(), CLIENTS, workers=1, work=[0] * CLIENTS)
    assert (place / "killed").read_text().split() == kinds


@pytest.mark.parametrize("strategy", ["moon", "feddyn", "scaffold"])
def test_a_run_whose_worker_is_killed_at_each_object_ends_as_one_that_nobody_disturbs(
    strategy: str, place: Path, tmp_path: Path
) -> None:
    # Three equal clients: the first job has two, the second what is left.
    kinds = ["Answers", "Kept", "Kept", "Answers", "end"]
    config = compose(
        [
            *(f"strategy={strategy}", f"rounds={len(kinds) + 1}", f"clients.count={CLIENTS}"),
            *("partition=iid", "local.epochs=1", "model.width=0.2"),
            *("runtime.workers=1", "runtime.cohort=off", f"cache_dir={tmp_path / 'cache'}"),
        ]
    )
    simulate(config, tmp_path / "whole")
    for number in range(len(kinds)):
        (place / str(number + 1)).write_text(str(number))
    simulate(config, tmp_path / "killed")
    assert (place / "killed").read_text().split() == kinds
    whole, killed = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "killed"))
    # Who is asked again answers singly, and an average adds up in another order; a state that was
    # lost or counted twice would be off by a step.
    for name, tensor in whole.items():
        torch.testing.assert_close(killed[name], tensor, rtol=1e-4, atol=1e-6)
