"""Runs with failing and lying clients: what the guard keeps, and what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

import clients.app
from experiments.commands.simulate import simulate
from fedwsa.config.component import ConfigError
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config
from fedwsa.schema.fleet import Fleet
from server.rounds import RunError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def configured(cache: str, *overrides: str) -> Config:
    fleet = ["clients.count=4", "local.epochs=1", "model.width=0.1", "rounds=2", "partition=iid"]
    return compose([*fleet, "runtime.workers=1", f"cache_dir={cache}", *overrides])


def lying(config: Config, behaviour: Mapping[int, str], until: int = 10**9) -> ClientApp:
    """Our ClientApp, in which some clients fail or lie up to a round."""
    honest, app = clients.app.build(config), ClientApp()
    for stage in (app.query, app.evaluate):
        stage()(lambda message, context: honest(message, context))
    asked: dict[tuple[int, int], int] = {}

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        number = int(message.content["config"]["server-round"])
        asked[client, number] = asked.get((client, number), 0) + 1
        lie = behaviour.get(client) if number <= until else None
        if lie == "fails" or (lie == "fails once" and asked[client, number] == 1):
            raise RuntimeError("the battery is empty")
        reply = honest(message, context)
        if lie in LIES:
            sent, own = message.content["arrays"], reply.content["arrays"]
            updates = {k: a.numpy() - sent[k].numpy() for k, a in own.items()}
            reply.content["arrays"] = ArrayRecord(
                {
                    k: Array((sent[k].numpy() + LIES[lie] * u).astype(np.float32))
                    for k, u in updates.items()
                }
            )
        return reply

    return app


LIES: dict[str, Any] = {"scaled": 1000.0, "flipped": -1.0, "nan": math.nan}


def clients_in(cell: object) -> list[int]:
    return [] if pd.isna(cell) else [int(k) for k in str(cell).split()]


def slowest(config: Config, folder: Path, count: int) -> tuple[list[int], float]:
    """The slowest clients of a fleet with equal work, and a deadline that only they miss."""
    simulate(config.model_copy(update={"rounds": 1}), folder)
    [longest] = pd.read_csv(folder / "history.csv")["simulated_seconds"]
    speeds = [Fleet(config).device(k).flops_per_second for k in range(config.clients.count)]
    order = np.argsort(speeds)
    times = longest * speeds[order[0]] / np.array(speeds)[order]
    return sorted(order[:count].tolist()), float(times[count - 1 : count + 1].mean())


@pytest.mark.slow
def test_a_fleet_of_failing_late_and_lying_clients_learns_with_the_guard_and_not_without(
    cache: str, tmp_path: Path
) -> None:
    # Of thirty nine fail (30 %), six are late (20 %), and three lie (10 %), each in its way.
    fleet = ["clients.count=30", "rounds=20", "local.epochs=2", "model.width=1", "strategy=fedavg"]
    fleet += ["clients.speed_spread=1"]
    late, deadline = slowest(configured(cache, *fleet), tmp_path / "timing", 6)
    scaled, flipped, broken, *rest = [k for k in range(30) if k not in late]
    behaviour = {scaled: "scaled", flipped: "flipped", broken: "nan"}
    behaviour |= dict.fromkeys(rest[:9], "fails")
    accuracy = {}
    for name, ratio in (("guarded", "4"), ("unguarded", "null")):
        options = [f"guard.max_norm_ratio={ratio}", f"clients.deadline={deadline}"]
        config = configured(cache, *fleet, *options)
        result = simulate(config, tmp_path / name, lying(config, behaviour))
        accuracy[name] = result["accuracy"]
    print(f"accuracy: {accuracy}")
    assert accuracy["guarded"] >= 0.85
    assert accuracy["unguarded"] < accuracy["guarded"] - 0.1
    history = pd.read_csv(tmp_path / "guarded" / "history.csv")
    for column, clients_of in {
        "late": late,
        "rejected": [scaled, broken],
        "failed": [scaled, broken, *rest[:9]],
    }.items():
        assert [sorted(clients_in(cell)) for cell in history[column]] == [sorted(clients_of)] * 20
    lines = (tmp_path / "guarded" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert len(events) == 20 * 11
    assert {tuple(e) for e in events} == {("round", "stage", "client", "kind", "reason")}
    reasons = {e["client"]: (e["kind"], e["reason"]) for e in events}
    assert "times as long as the median" in reasons[scaled][1]
    assert "is NaN or infinite" in reasons[broken][1]
    kind, why = reasons[rest[0]]
    assert kind == "failed"
    assert why.startswith("RuntimeError: the battery is empty (")
    assert why.endswith(f"in train of client {rest[0]}")


def test_below_the_quorum_a_round_is_repeated_for_those_that_failed(
    cache: str, tmp_path: Path
) -> None:
    options = ["guard.min_results=4", "guard.repeats=2", "wsa=on"]
    for name, behaviour in (("once", {2: "fails once"}), ("never", {})):
        config = configured(cache, *options)
        result = simulate(config, tmp_path / name, lying(config, behaviour))
        assert (result["failed"], result["rejected"]) == (0, 0)
    # Each client trained once as it would have: partial averages in another order of sums.
    accuracies = [
        pd.read_csv(tmp_path / n / "history.csv")["train_loss"] for n in ("once", "never")
    ]
    np.testing.assert_allclose(accuracies[0], accuracies[1], rtol=1e-5)
    events = [json.loads(s) for s in (tmp_path / "once" / "events.jsonl").read_text().splitlines()]
    assert [(e["round"], e["client"], e["kind"]) for e in events] == [
        (1, 2, "failed"),
        (1, None, "repeated"),
        (2, 2, "failed"),
        (2, None, "repeated"),
    ]
    assert (tmp_path / "never" / "events.jsonl").read_text() == ""


def test_below_the_quorum_the_model_stays_or_the_run_ends_in_one_line(
    cache: str, tmp_path: Path
) -> None:
    behaviour = dict.fromkeys((0, 1), "fails") | {2: "nan"}
    quorum = ["guard.min_results=0.5", "rounds=3"]  # two of four
    config = configured(cache, *quorum, "guard.below=skip")
    result = simulate(config, tmp_path / "skip", lying(config, behaviour, until=1))
    assert result["failed"] == 3
    history = pd.read_csv(tmp_path / "skip" / "history.csv")
    untouched = simulate(
        configured(cache, "rounds=1", "guard.below=skip"),
        tmp_path / "n",
        lying(config, dict.fromkeys(range(4), "fails")),
    )
    assert history["loss"][0] == untouched["loss"]  # of the initial model
    assert history["loss"][2] < history["loss"][0]
    line = (
        "round 1: 1 of 4 clients gave a usable answer, 2 are needed; of the others most: "
        "RuntimeError: the battery is empty ("
    )
    config = configured(cache, *quorum)
    with pytest.raises(RunError) as caught:
        simulate(config, tmp_path / "stop", lying(config, behaviour, until=1))
    assert str(caught.value).startswith(line)
    assert str(caught.value).endswith(") in train of client 0")
    events = [json.loads(s) for s in (tmp_path / "stop" / "events.jsonl").read_text().splitlines()]
    assert [e["kind"] for e in events] == ["failed", "failed", "rejected", "stopped"]
    assert not (tmp_path / "stop" / "result.json").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("guard.min_results=5", "guard.min_results: 5 are more than the 4 clients of a round"),
        ("guard.min_results=1.5", "guard.min_results: must be a number of clients, or a share"),
        ("guard.max_norm_ratio=1", "guard.max_norm_ratio"),
        ("guard.below=wait", "guard.below: input should be 'stop' or 'skip'"),
    ],
)
def test_a_guard_that_cannot_be_is_refused(override: str, message: str, cache, tmp_path) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(configured(cache, override), tmp_path / "run")
    assert not (tmp_path / "run").exists()
