"""The benchmark's own parts: its table and file, the plain loop, the memory of processes."""

from __future__ import annotations

import json
import logging
import os
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from experiments.bench import engine, limit, wave_cost
from experiments.bench.engine import Result
from experiments.bench.loop import loop_seconds
from experiments.bench.timing import in_turn
from experiments.bench.workloads import TRAININGS
from experiments.commands import simulate
from fedwsa.descendants import Usage, family, usage
from fedwsa.schema.compose import compose


def test_the_file_has_an_entry_for_each_workload(tmp_path, monkeypatch, capsys) -> None:
    # What main() changes for its process is put back.
    monkeypatch.setattr(simulate.console, "quiet", simulate.console.quiet)
    level = logging.getLogger("flwr").level
    monkeypatch.setattr(engine, "_run", lambda name, *_: Result(name, 0.5, 12.5, None, None))
    file = tmp_path / "engine.json"
    arguments = ["engine", "--workload", "cnn", "--workload", "echo", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", arguments)
    engine.main()
    assert json.loads(file.read_text()) == [
        {
            "workload": name,
            "seconds": 0.5,
            "flower_ratio": 12.5,
            "loop_ratio": None,
            "pfl_ratio": None,
            "blazefl_ratio": None,
            "limit_ratio": None,
        }
        for name in ("cnn", "echo")
    ]
    logging.getLogger("flwr").setLevel(level)
    assert "12.50" in capsys.readouterr().out


def test_sides_take_turns_and_medians_are_compared() -> None:
    order: list[str] = []

    def side(name: str, seconds: list[float]):
        def run(turn: int) -> list[float]:
            order.append(name)
            return [seconds[turn], seconds[turn]]

        return run

    times = in_turn({"a": side("a", [1.0, 3.0]), "b": side("b", [2.0, 2.0])}, 2)
    assert order == ["a", "b", "b", "a"]
    assert times == {"a": 2.0, "b": 2.0}


@pytest.mark.parametrize("name", list(TRAININGS))
def test_workloads_are_valid_configurations(name: str) -> None:
    for runtime in ("ray", "flower"):
        config = compose([*TRAININGS[name].overrides, f"runtime={runtime}"])
        assert round(config.clients.count * config.clients.fraction) in (50, 200, 500)


@pytest.mark.slow
def test_the_plain_loop_runs(tmp_path) -> None:
    config = compose(
        [
            *TRAININGS["mlp"].overrides,
            *(f"cache_dir={tmp_path}", "runtime.workers=2", "clients.count=20"),
        ]
    )
    seconds = loop_seconds(config, rounds=2)
    assert len(seconds) == 2
    assert all(s > 0 for s in seconds)


def test_a_family_is_a_process_with_its_descendants_and_has_memory() -> None:
    import subprocess

    nested = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    child = subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE)
    try:
        while len(found := family(child.pid)) < 2:
            assert child.poll() is None
        assert found[0] == child.pid
        assert child.pid in family(os.getpid())
        taken = usage(child.pid)
        assert taken.memory > 1
        assert taken.threads >= 2
        assert taken.descriptors >= 6  # in, out and errors of both
    finally:
        child.communicate(b"\n")
    assert usage(child.pid) == Usage(0.0, 0, 0)


def test_the_templates_of_nine_sizes_take_a_fifth_of_the_nine_networks() -> None:
    gene, networks = wave_cost.family_bytes(
        [wave_cost.transformer(w, d) for w in wave_cost.WIDTHS for d in wave_cost.DEPTHS]
    )
    assert gene <= networks / 5


def test_the_limit_does_what_every_client_would_do_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    shared = {name: p.detach().clone() for name, p in model.named_parameters()}
    pixels = torch.randint(0, 256, (3, limit.SAMPLES, 3, 2, 2), dtype=torch.uint8)
    labels = torch.randint(0, 5, (3, limit.SAMPLES))
    stacked = limit._trained(model, shared, pixels, labels)
    for k in range(3):
        model.load_state_dict(shared)
        optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9, weight_decay=1e-5)
        inputs = (pixels[k].float() / 255 - 0.5) / 0.25
        for x, y in zip(inputs.split(limit.BATCH), labels[k].split(limit.BATCH), strict=True):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        for name, weight in model.state_dict().items():
            torch.testing.assert_close(stacked[name][k], weight)
