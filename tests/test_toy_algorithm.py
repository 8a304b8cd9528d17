"""An algorithm of one's own is one folder and one yaml, and nothing changes elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.given.runtimes import environment, ran

pytestmark = pytest.mark.slow

COMMAND = Path(sys.executable).with_name("fedwsa")

CLIENT = '''
"""Each client goes a little in the direction in which all went last, and counts its trainings."""

import torch
from fedwsa.algorithms.objective import Objective, gradients, trainable


class Along(Objective):
    @classmethod
    def asked(cls, content):
        return "toy-direction" in content

    def __init__(self, model, content, local=None):
        self.named, self.local = trainable(model), local
        self.begun = {name: weight.detach().clone() for name, weight in self.named.items()}
        self.direction = [content["toy-direction"][name] for name in self.named]

    @torch.no_grad()
    def add_gradient(self):
        torch._foreach_sub_(gradients(list(self.named.values())), self.direction, alpha=0.1)

    def end(self):
        before = self.local.state.get("toy", {"times": torch.zeros(1)})["times"]
        self.local.state["toy"] = {"times": before + 1}
        return {"toy-times": float(before) + 1}

    def records(self):
        way = {name: weight.detach() - self.begun[name] for name, weight in self.named.items()}
        return {"toy-way": way}
'''

SERVER = '''
"""The direction is the mean of the ways that the clients went."""

from dataclasses import replace

import torch
from flwr.app import RecordDict
from fedwsa.algorithms.memory.server import Remembering
from fedwsa.wire import messages

from toy.client import Along


class AlongAvg(Remembering):
    traits = replace(
        Remembering.traits,
        needs_sgd=True,
        whole_models=False,
        answers=(("toy-direction", "toy-way"),),
        objectives=(Along,),
    )

    def __init__(self, *, fade: float):
        super().__init__()
        self.fade, self.direction = fade, None

    def configure_train(self, server_round, arrays, config, grid):
        self.sent = messages.to_tensors(arrays)
        if self.direction is None:
            self.direction = {name: torch.zeros_like(t) for name, t in self.sent.items()}
        record = messages.to_arrays(self.direction)
        sent = list(super().configure_train(server_round, arrays, config, grid))
        messages.change_contents(sent, lambda c: RecordDict({**c, "toy-direction": record}))
        return sent

    def aggregate_train(self, server_round, replies):
        given = self.accept(server_round, replies)
        ways = [messages.to_tensors(r.content.pop("toy-way")) for r in given]
        counts = [messages.number(m, "num-examples") for m in messages.reply_metrics(given)]
        arrays, metrics = super().aggregate_train(server_round, given)
        mean = {
            name: sum(n * way[name] for n, way in zip(counts, ways)) / sum(counts)
            for name in self.sent
        }
        for name, new in messages.to_tensors(arrays).items():  # the average went the average way
            torch.testing.assert_close(new - self.sent[name], mean[name], rtol=1e-4, atol=1e-6)
        self.direction = {name: self.fade * way for name, way in mean.items()}
        return arrays, metrics
'''


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one folder and one yaml."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy").mkdir()
    (folder / "toy" / "client.py").write_text(CLIENT)
    (folder / "toy" / "server.py").write_text(SERVER)
    (folder / "conf" / "strategy").mkdir(parents=True)
    yaml = "{_target_: toy.server.AlongAvg, args: {fade: 0.5}}\n"
    (folder / "conf" / "strategy" / "toy.yaml").write_text(yaml)
    return folder


def fedwsa(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    own = ["strategy=toy", "rounds=3", "clients.count=4", "clients.table=true", *words]
    return ran([COMMAND, *own], folder, environment(folder))


def test_it_has_state_records_both_ways_and_a_part_in_the_run(mine: Path) -> None:
    done = fedwsa(mine, "wsa=on", "hydra.run.dir=out")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(mine / "out" / "clients.csv")
    assert (table["toy-times"] == table["round"]).all()  # each client trains in each round
    assert pd.read_csv(mine / "out" / "history.csv")["failed"].isna().all()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("local.optimiser=adam", "local.optimiser: AlongAvg counts steps of SGD"),
        ("strategy.args.fade=much", "strategy.args.fade: input should be a valid number"),
    ],
)
def test_its_constraints_refuse_a_run_before_anything_is_written(
    words: str, line: str, mine: Path
) -> None:
    done = fedwsa(mine, words, "hydra.run.dir=refused", "runtime=flower")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert line in done.stderr
    assert not (mine / "refused").exists()
