"""Whole runs on simulated devices: who is counted, what it costs, what is trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from rich.console import Console
from safetensors.torch import load_file

from clients.training import Samples, train
from experiments.commands.simulate import _to_choose_by, simulate
from fedwsa import seeding
from fedwsa.algorithms.scaffold.server import Scaffold
from fedwsa.config.component import ConfigError
from fedwsa.data.federated import FederatedData, open_federated
from fedwsa.fleet.systems import drops_out
from fedwsa.schema.compose import compose, from_run_config
from fedwsa.schema.conditions import Conditions
from fedwsa.schema.fleet import Fleet
from fedwsa.wire import messages
from fedwsa.wire.names import SCAFFOLD_CHANGE
from server.federation import Federation
from server.nodes import PartitionGrid
from tests.given.apps import Loopback
from tests.given.nodes import PartitionNodes
from tests.given.training import data, local, net

pytestmark = pytest.mark.usefixtures("all_cores", "task_identity")

MLP = 64 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10
PER_SAMPLE = 2 * 2 * (64 * 200 + 200 * 200 + 200 * 10) + 2 * (200 * 200 + 200 * 10)
REPORT = 2 * 8  # number of examples and loss


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def run(folder: Path, cache: str, overrides: str, clients: int = 4) -> pd.DataFrame:
    """A run without a runtime; returns its history."""
    run_config = {
        "overrides": f"clients.count={clients} partition=iid rounds=2 local.epochs=1 "
        f"cache_dir={cache} {overrides}"
    }
    federation = Federation(from_run_config(run_config), folder, Console(quiet=True))
    federation.start(Loopback(clients, run_config))
    return read(folder)


def read(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "history.csv", dtype=dict.fromkeys(("cohort", *LISTS), str))


LISTS = ("dropped", "late", "failed")


def clients_in(cell: object) -> list[int]:
    return [int(c) for c in str(cell).split()] if isinstance(cell, str) else []


def same_model(a: Path, b: Path) -> bool:
    left, right = (load_file(folder / "model.safetensors") for folder in (a, b))
    return all(torch.equal(left[k], right[k]) for k in left)


def test_bytes_and_operations_are_those_counted_by_hand(cache: str, tmp_path: Path) -> None:
    plain = run(tmp_path / "fedavg", cache, "clients.fraction=0.5")
    assert plain["bytes_down"].tolist() == [2 * MLP * 4] * 2
    assert plain["bytes_up"].tolist() == [2 * (MLP * 4 + REPORT)] * 2
    # Control variates go both ways: as many numbers again.
    doubled = run(tmp_path / "scaffold", cache, "clients.fraction=0.5 strategy=scaffold")
    assert doubled["bytes_down"].tolist() == [2 * MLP * 4 * 2] * 2
    assert doubled["bytes_up"].tolist() == [2 * (MLP * 4 * 2 + REPORT)] * 2
    samples = [len(split(cache, 4, client)) for client in range(4)]
    for cohort, flops, seconds in zip(
        plain["cohort"], plain["flops_per_client"], plain["simulated_seconds"], strict=True
    ):
        trained = [samples[c] for c in clients_in(cohort)]
        assert flops == pytest.approx(PER_SAMPLE * np.mean(trained))
        slowest = PER_SAMPLE * max(trained) / 1e10 + (2 * MLP * 4 + REPORT) / 1e6
        assert seconds == pytest.approx(slowest)
    result = json.loads((tmp_path / "fedavg" / "result.json").read_text())
    assert result["bytes_down"] == 2 * 2 * MLP * 4
    assert result["simulated_seconds"] == pytest.approx(plain["simulated_seconds"].sum())


def split(cache: str, count: int, client: int) -> torch.Tensor:
    config = compose([f"clients.count={count}", "partition=iid", f"cache_dir={cache}"])
    return open_federated(config.data_spec).split(client)[0]


def test_what_stays_with_the_clients_does_not_travel(cache: str, tmp_path: Path) -> None:
    # FedPer keeps the classifier, 200·10 + 10 numbers; local training keeps everything.
    shared = 4 * (MLP - 2010)
    table = run(tmp_path / "fedper", cache, "strategy=fedper")
    assert table["bytes_down"].tolist() == [4 * shared] * 2
    assert table["bytes_up"].tolist() == [4 * (shared + REPORT)] * 2
    table = run(tmp_path / "local", cache, "strategy=local evaluation.validation=0.1")
    assert table["bytes_down"].tolist() == [0, 0]
    assert table["bytes_up"].tolist() == [4 * REPORT] * 2
    assert "validation_accuracy" not in table
    result = json.loads((tmp_path / "local" / "result.json").read_text())
    assert _to_choose_by(result) == result["client_accuracy_mean"]


def test_pooled_training_happens_on_no_device(cache: str, tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", cache, "strategy=centralised")
    fleet = "clients.dropout=0.9 clients.deadline=1e-6 clients.late=cut clients.availability=0.3"
    table = run(tmp_path / "fleet", cache, f"strategy=centralised {fleet}")
    assert same_model(tmp_path / "plain", tmp_path / "fleet")
    for column in ("bytes_down", "simulated_seconds", "dropped", "late"):
        assert table[column].isna().all()
    assert table["accuracy"].tolist() == plain["accuracy"].tolist()


def test_a_small_model_costs_less_of_everything(cache: str, tmp_path: Path) -> None:
    # Half the units: 64·100 + 100 + 100·100 + 100 + 100·10 + 10 numbers.
    small = 64 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10
    sized = "strategy=heterofl 'clients.sizes=[M,L,M,L]'"
    table = run(tmp_path, cache, sized)
    assert table["bytes_down"].tolist() == [2 * 4 * (small + MLP)] * 2
    classes = 10 * 8  # which a client has
    assert table["bytes_up"].tolist() == [2 * 4 * (small + MLP) + 4 * (REPORT + classes)] * 2
    work = 2 * 2 * (64 * 100 + 100 * 100 + 100 * 10) + 2 * (100 * 100 + 100 * 10)
    samples = [len(split(cache, 4, client)) for client in range(4)]
    flops = [n * cost for n, cost in zip(samples, [work, PER_SAMPLE] * 2, strict=True)]
    assert table["flops_per_client"][0] == pytest.approx(np.mean(flops))


def test_every_strategy_meets_the_same_fleet(cache: str, tmp_path: Path) -> None:
    fleet = (
        "clients.fraction=0.5 'clients.availability=[0.6,1.0]' clients.dropout=0.4 rounds=6 "
        "evaluation.every=6 evaluation.clients_every=6"
    )
    strategies = {
        "fedavg": "",
        "wsa": "wsa=on",
        "scaffold": "strategy=scaffold",
        "feddyn": "strategy=feddyn",
        "median": "strategy._target_=flwr.serverapp.strategy.FedMedian",
    }
    tables = [
        run(tmp_path / name, cache, f"{fleet} {more}", clients=10)
        for name, more in strategies.items()
    ]
    for table in tables:
        for column in ("cohort", "dropped"):
            assert table[column].tolist() == tables[0][column].tolist()
        assert table["failed"].isna().all()
    cohorts = [clients_in(c) for c in tables[0]["cohort"]]
    # Half of those that are there: of all ten in every second round.
    assert [len(c) for c in cohorts[1::2]] == [5, 5, 5]
    assert all(len(c) <= 5 for c in cohorts[::2])
    for number, (cohort, cell) in enumerate(zip(cohorts, tables[0]["dropped"], strict=True), 1):
        assert clients_in(cell) == [c for c in cohort if drops_out(0, number, c, 0.4)]
    # Down go models to the whole cohort, up come those that were not lost.
    lost = [len(clients_in(cell)) for cell in tables[0]["dropped"]]
    assert tables[0]["bytes_down"].tolist() == [len(c) * MLP * 4 for c in cohorts]
    assert tables[0]["bytes_up"].tolist() == [
        (len(c) - n) * (MLP * 4 + REPORT) for c, n in zip(cohorts, lost, strict=True)
    ]


def test_a_round_without_an_answer_leaves_the_model_and_the_run_goes_on(
    cache: str, tmp_path: Path
) -> None:
    # Of these draws all clients are out in some rounds, and not in others.
    lost = [all(drops_out(0, r, c, 0.7) for c in range(2)) for r in range(1, 9)]
    assert 2 <= sum(lost) <= 6
    options = "clients.dropout=0.7 rounds=8 wsa=on clients.table=true"
    table = run(tmp_path, cache, options, clients=2)
    assert table["round"].tolist() == list(range(1, 9))
    assert table["train_loss"].isna().tolist() == lost
    assert (table["bytes_up"] == 0).tolist() == lost
    for number in range(1, 8):
        unchanged = table["accuracy"][number] == table["accuracy"][number - 1]
        assert unchanged or not lost[number]
    assert table["failed"].isna().all()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["dropped"] == sum(len(clients_in(cell)) for cell in table["dropped"])
    assert result["failed"] == 0
    scopes = pd.read_csv(tmp_path / "scopes.csv")
    assert sorted(set(scopes["round"])) == [r for r in range(1, 9) if not lost[r - 1]]
    answers = pd.read_csv(tmp_path / "clients.csv")
    assert len(answers) == 16 - result["dropped"]


# A fleet in which one second is one sample and traffic takes none; of 1437 digits four clients
# have 359 or 360, of which they train on 287 or 288: 9 steps of at most 32.
SLOW = f"clients.flops_per_second={PER_SAMPLE} clients.bytes_per_second=1e15"


def test_who_misses_the_deadline_is_lost_and_counted(cache: str, tmp_path: Path) -> None:
    samples = [len(split(cache, 4, client)) for client in range(4)]
    assert sorted(set(samples)) == [287, 288]
    late = [client for client, n in enumerate(samples) if n == 288]
    table = run(tmp_path / "late", cache, f"{SLOW} clients.deadline=287.5")
    assert [clients_in(cell) for cell in table["late"]] == [late] * 2
    assert table["dropped"].isna().all()
    assert table["failed"].isna().all()
    # Somebody is missing: the server waits as long as it may.
    assert table["simulated_seconds"].tolist() == [287.5] * 2
    assert table["flops_per_client"].tolist() == [287 * PER_SAMPLE] * 2
    assert table["bytes_up"].tolist() == [(4 - len(late)) * (MLP * 4 + REPORT)] * 2
    # Nobody is: as long as the slowest takes.
    table = run(tmp_path / "in time", cache, f"{SLOW} clients.deadline=290")
    assert table["late"].isna().all()
    np.testing.assert_allclose(table["simulated_seconds"], 288, rtol=1e-6)


def test_a_cut_after_one_epoch_is_training_for_one_epoch(cache: str, tmp_path: Path) -> None:
    # 288 samples are an epoch; the next step would take 31 or 32 seconds more.
    cut = f"{SLOW} clients.deadline=300 clients.late=cut local.epochs=5"
    table = run(tmp_path / "cut", cache, cut)
    whole = run(tmp_path / "one epoch", cache, SLOW)
    assert same_model(tmp_path / "cut", tmp_path / "one epoch")
    assert [clients_in(cell) for cell in table["late"]] == [[0, 1, 2, 3]] * 2
    for column in ("accuracy", "train_loss", "bytes_up", "flops_per_client", "simulated_seconds"):
        assert table[column].tolist() == whole[column].tolist()
    run(tmp_path / "whole", cache, f"{SLOW} local.epochs=5")
    assert not same_model(tmp_path / "cut", tmp_path / "whole")


def test_a_client_without_time_for_a_single_step_is_lost_when_cut(
    cache: str, tmp_path: Path
) -> None:
    options = f"{SLOW} clients.deadline=31 clients.late=cut"
    table = run(tmp_path, cache, options)
    assert [clients_in(cell) for cell in table["late"]] == [[0, 1, 2, 3]] * 2
    assert table["bytes_up"].tolist() == [0, 0]
    assert table["simulated_seconds"].tolist() == [31, 31]
    assert table["accuracy"][0] == table["accuracy"][1]


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_cut_training_is_that_many_steps_by_hand(steps: int) -> None:
    settings = local(epochs=3, batch_size=8, lr=0.1, momentum=0.0, weight_decay=0.0)
    x, y = data()
    model, reference = net(), net()
    samples = Samples(x, y, lambda p: p, seeding.generator(0, "train", 1, 0))
    conditions = Conditions(0.1, 0.0, 8, 3, steps=steps)
    loss = train(model, samples, settings, conditions, [])
    random, losses = seeding.generator(0, "train", 1, 0), []
    batches = [b for _ in range(3) for b in torch.split(torch.randperm(23, generator=random), 8)]
    for batch in batches[:steps]:
        value = torch.nn.functional.cross_entropy(reference(x[batch]), y[batch])
        losses.append((value.item(), len(batch)))
        gradients = torch.autograd.grad(value, list(reference.parameters()))
        with torch.no_grad():
            for p, g in zip(reference.parameters(), gradients, strict=True):
                p -= 0.1 * g
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    values, weights = zip(*losses, strict=True)
    assert loss == pytest.approx(np.average(values, weights=weights), rel=1e-5)


def test_faster_devices_do_more_before_the_deadline(cache: str, tmp_path: Path) -> None:
    options = f"{SLOW} clients.speed_spread=1 clients.deadline=250 clients.late=cut local.epochs=3"
    table = run(tmp_path, cache, options, clients=10)
    config = compose(["clients.count=10", "clients.speed_spread=1"])
    late = clients_in(table["late"][0])
    assert 0 < len(late) < 10
    slowest_in_time = min(Fleet(config).speed(c) for c in range(10) if c not in late)
    assert all(Fleet(config).speed(c) < slowest_in_time for c in late)
    assert (table["simulated_seconds"] <= 250).all()
    assert table["bytes_up"][0] == 10 * (MLP * 4 + REPORT)


def test_our_engine_counts_what_no_runtime_counts(cache: str, tmp_path: Path) -> None:
    """Averages of workers stand for the answers of clients; bytes are those of the answers."""
    fleet = "clients.dropout=0.3 clients.availability=0.8 clients.speed_spread=0.5 wsa=on"
    cut = f"{SLOW} clients.deadline=100 clients.late=cut local.epochs=2 clients.count=8"
    for name, more in {"drop": fleet, "cut": f"{fleet} {cut}"}.items():
        alone = run(tmp_path / name, cache, more, clients=8)
        config = compose(
            [
                *("clients.count=8", "partition=iid", "rounds=2", "local.epochs=1"),
                *(f"cache_dir={cache}", *more.split(), "runtime.workers=2"),
            ]
        )
        simulate(config, tmp_path / f"{name}-engine")
        simulate(config, tmp_path / f"{name}-again")
        engine = read(tmp_path / f"{name}-engine")
        counted = ["cohort", *LISTS, "bytes_down", "bytes_up", "simulated_seconds"]
        pd.testing.assert_frame_equal(engine[counted], alone[counted])
        np.testing.assert_allclose(engine["train_loss"], alone["train_loss"], rtol=1e-4)
        histories = [
            (tmp_path / f"{name}-{which}" / "history.csv").read_text()
            for which in ("engine", "again")
        ]
        assert histories[0] == histories[1]
    ray.shutdown()


def test_who_is_away_is_not_shown_and_counts_for_the_size_of_the_fleet() -> None:
    grid = PartitionGrid(PartitionNodes({77: 2, 5: 0, 31: 1}), 3)
    with grid.only({0, 2}):
        assert grid.get_node_ids() == [5, 77]
        assert len(list(grid.get_nodes())) == 3
        strategy = Scaffold(min_available_nodes=1)
        arrays = ArrayRecord({"w": _array([0.0])})
        sent = list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    assert grid.get_node_ids() == [5, 31, 77]
    replies = []
    for message in sent:
        content = RecordDict(
            {
                "arrays": ArrayRecord({"w": _array([1.0])}),
                "metrics": MetricRecord({"num-examples": 1}),
                SCAFFOLD_CHANGE: ArrayRecord({"w": _array([3.0])}),
            }
        )
        replies.append(Message(content, reply_to=message))
    strategy.aggregate_train(1, replies)
    # c moves by the sum of two changes over the three of the fleet.
    assert strategy.control is not None
    assert strategy.control["w"].tolist() == [2 * 3 / 3]


def _array(values: list[float]):
    return messages.to_arrays({"w": torch.tensor(values)})["w"]


def test_payload_counts_arrays_and_metrics() -> None:
    content = RecordDict(
        {
            "arrays": messages.to_arrays({"a": torch.zeros(3, 5), "b": torch.zeros(2).double()}),
            "more": messages.to_arrays({"c": torch.zeros((), dtype=torch.float16)}),
            "metrics": MetricRecord({"n": 3, "list": [1.0, 2.0, 3.0]}),
            "config": ConfigRecord({"server-round": 1}),
        }
    )
    message = Message(content, 2, MessageType.TRAIN)
    assert messages.payload(message.content) == 15 * 4 + 2 * 8 + 2 + 4 * 8


def test_waiting_for_clients_that_are_away_is_refused(cache: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"with clients\.availability fewer may be"):
        run(tmp_path, cache, "clients.availability=0.5 strategy.args.min_train_nodes=3")
    assert not list(tmp_path.iterdir())


def test_validation_images_are_nobody_s_and_drawn_by_the_seed(cache: str) -> None:
    def opened(*overrides: str) -> FederatedData:
        fleet = ["clients.count=5", "partition=iid", f"cache_dir={cache}"]
        return open_federated(compose([*fleet, *overrides]).data_spec)

    both = opened("init.public=0.25", "evaluation.validation=0.2")
    kept = [*both.public.tolist(), *both.validation.tolist()]
    assert len(both.validation) == round(0.2 * 1437)
    held = np.concatenate(both.partition.shares)
    assert sorted([*held, *kept]) == list(range(1437))
    public = opened("init.public=0.25").public
    assert torch.equal(public, both.public)
    other = opened("evaluation.validation=0.2", "seed=1")
    assert other.validation.tolist() != opened("evaluation.validation=0.2").validation.tolist()
    assert len(opened().validation) == 0


def test_the_validation_split_is_scored_and_chosen_by_and_the_test_set_never(
    cache: str, tmp_path: Path
) -> None:
    table = run(tmp_path / "with", cache, "evaluation.validation=0.2 rounds=3 evaluation.every=2")
    assert table["validation_accuracy"].notna().tolist() == [False, True, True]
    assert table["validation_loss"].notna().tolist() == [False, True, True]
    result = json.loads((tmp_path / "with" / "result.json").read_text())
    assert result["validation_accuracy"] == table["validation_accuracy"][2]
    assert _to_choose_by(result) == result["validation_accuracy"]
    # 287 images: accuracy is a whole number of them.
    hits = result["validation_accuracy"] * 287
    assert hits == pytest.approx(round(hits))
    table = run(tmp_path / "without", cache, "")
    assert "validation_accuracy" not in table
    result = json.loads((tmp_path / "without" / "result.json").read_text())
    assert "validation_accuracy" not in result
    assert _to_choose_by(result) == result["client_accuracy_mean"] != result["accuracy"]
    assert np.isnan(_to_choose_by({"accuracy": 0.9, "client_accuracy_mean": None}))
