"""Steps of the server as answers come, on the clock of the simulated devices."""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from safetensors.torch import load_file
from torch import Tensor

import clients.app
from experiments.commands.simulate import resume, simulate
from fedwsa.config.component import ConfigError
from fedwsa.data.federated import open_federated
from fedwsa.fleet.staleness import moved, weight
from fedwsa.models import build_model
from fedwsa.models.exchange import travelling_state
from fedwsa.runfolder import state_files
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config
from server.rounds import RunError
from server.sizes import SizedModels
from server.systems import Systems
from tests.given.checkpoint import assert_same_run, until
from tests.given.pace import Plain

SMALL = ["clients.count=4", "local.epochs=1", "model.width=0.2", "rounds=6", "partition.alpha=1"]
UNEQUAL = ["clients.speed_spread=1", "clients.flops_per_second=1e8"]
BY_SINGLE_ANSWERS = "strategy._target_=tests.given.pace.Plain"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def configured(cache: str, *overrides: str) -> Config:
    return compose([*SMALL, f"cache_dir={cache}", *overrides])


def played(folder: Path, cache: str, *overrides: str) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    simulate(configured(cache, *overrides), folder)
    table = pd.read_csv(folder / "history.csv", dtype={"cohort": str, "failed": str})
    return table, load_file(folder / "model.safetensors")


def seconds(config: Config) -> list[float]:
    """What a training takes each client, with a model that it is sent and sends."""
    data = open_federated(config.data_spec)
    sizes = SizedModels.of(config, data.whole.shape, data.whole.classes)
    down = sum(4 * t.numel() for t in travelling_state(next(iter(sizes.models.values()))).values())
    tasks = [Systems(config, data, sizes).task(k, down) for k in range(config.clients.count)]
    return [task.seconds(task.steps, down) for task in tasks]


def test_staleness_is_weighed_as_in_the_papers() -> None:
    assert [weight("constant", t, 0.5, 4) for t in (0, 9)] == [1, 1]
    assert [weight("polynomial", t, 0.5, 4) for t in (0, 3, 8)] == [1, 0.5, pytest.approx(1 / 3)]
    assert [weight("hinge", t, 0.5, 4) for t in (0, 4, 6)] == [1, 1, 0.5]


def test_a_late_answer_goes_its_own_way_from_where_the_server_is() -> None:
    begun, now = {"w": torch.tensor([1.0]), "s": torch.tensor([5.0])}, {"w": torch.tensor([4.0])}
    answer = {"w": torch.tensor([3.0]), "s": torch.tensor([7.0])}
    found = moved(answer, begun, now, 0.5, ["s"])
    assert {name: float(t) for name, t in found.items()} == {"w": 5.0, "s": 7.0}


def test_with_an_infinite_buffer_and_no_delays_it_is_fedavg_to_the_bit(
    cache: str, tmp_path: Path
) -> None:
    rounds = played(tmp_path / "rounds", cache, BY_SINGLE_ANSWERS)
    paced = played(tmp_path / "paced", cache, BY_SINGLE_ANSWERS, "pace=fedbuff", "pace.buffer=1000")
    assert (paced[0]["staleness"] == 0).all()
    same = ["accuracy", "loss", "train_loss", "cohort", "bytes_down", "bytes_up"]
    pd.testing.assert_frame_equal(rounds[0][same], paced[0][same], check_exact=True)
    # But for the metrics in an answer, which is taken to be as large as what was sent.
    clocks = rounds[0]["simulated_seconds"], paced[0]["simulated_seconds"]
    pd.testing.assert_series_equal(*clocks, rtol=1e-3)
    assert all(torch.equal(paced[1][name], tensor) for name, tensor in rounds[1].items())


@pytest.mark.parametrize("buffer", [1, 3])
def test_answers_come_when_each_device_is_done(buffer: int, cache: str, tmp_path: Path) -> None:
    """All train at once, and begin anew with the next model: a step waits for whoever is first."""
    words = ["pace=fedbuff", f"pace.buffer={buffer}", *UNEQUAL]
    table, _ = played(tmp_path / "run", cache, *words)
    takes = seconds(configured(cache, *words))
    assert max(takes) > 2 * min(takes)
    under_way = [(time, k, 0) for k, time in enumerate(takes)]  # until, who, model
    heapq.heapify(under_way)
    clock = 0.0
    for step, row in enumerate(table.itertuples()):
        came = [heapq.heappop(under_way) for _ in range(buffer)]
        assert row.cohort == " ".join(str(k) for k in sorted(k for _, k, _ in came))
        assert row.simulated_seconds == pytest.approx(came[-1][0] - clock)
        assert row.staleness == pytest.approx(sum(step - model for *_, model in came) / buffer)
        clock = came[-1][0]
        for _, k, _ in came:
            heapq.heappush(under_way, (clock + takes[k], k, step + 1))


def test_a_period_takes_what_is_there_at_its_end(cache: str, tmp_path: Path) -> None:
    takes = sorted(seconds(configured(cache, *UNEQUAL)))
    period = (takes[1] + takes[2]) / 2
    words = ["pace=periodic", f"pace.period={period}", *UNEQUAL]
    table, _ = played(tmp_path / "run", cache, *words)
    assert table["simulated_seconds"].tolist() == pytest.approx([period] * 6)
    assert len(table["cohort"][0].split()) == 2
    last = -(-takes[-1] // period)  # the slowest client's first answer, late by so many steps
    assert table["staleness"][0] == 0
    assert table["staleness"][int(last) - 1] > 0


def test_a_step_of_fedasync_is_a_part_of_the_way_to_the_answer(cache: str, tmp_path: Path) -> None:
    one = ["clients.count=1", "rounds=1"]
    _, answer = played(tmp_path / "rounds", cache, *one)
    _, found = played(tmp_path / "paced", cache, *one, "pace=fedasync", "pace.rate=0.25")
    config = configured(cache, *one)
    shape, classes = (whole := open_federated(config.data_spec).whole).shape, whole.classes
    first = build_model(config.model, shape, classes, config.seed).state_dict()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, first[name] + 0.25 * (answer[name] - first[name]))


WAYS = {
    "fedbuff": ["pace=fedbuff", "pace.buffer=2", "clients.dropout=0.3"],
    "fedasync": ["pace=fedasync", "wsa=on"],
    "periodic": ["pace=periodic", "pace.period=0.02", "strategy=fedadam"],
    "hinge": ["pace=fedbuff", "pace.buffer=2", "pace.discount=hinge", "pace.bound=0"],
}


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("way", WAYS)
def test_a_run_repeats_to_the_bit_on_any_number_of_workers(
    way: str, cache: str, tmp_path: Path
) -> None:
    words = [*WAYS[way], *UNEQUAL, "clients.count=6", "pace.concurrency=4", "runtime.cohort=off"]
    one, two = (
        played(tmp_path / str(workers), cache, *words, f"runtime.workers={workers}")
        for workers in (1, 2)
    )
    pd.testing.assert_frame_equal(one[0], two[0], check_exact=True)
    assert one[0]["staleness"].max() > 0
    assert one[0]["failed"].isna().all()
    assert all(torch.equal(two[1][name], tensor) for name, tensor in one[1].items())


def test_who_gives_no_answer_is_not_waited_for(cache: str, tmp_path: Path) -> None:
    words = ["pace=fedbuff", "pace.buffer=2", "clients.dropout=0.5", "rounds=12", *UNEQUAL]
    table, _ = played(tmp_path / "run", cache, *words)
    assert table["dropped"].notna().any()
    answered = table["cohort"].str.split().str.len() - (
        table["dropped"].fillna("").astype(str).str.split().str.len()
    )
    assert (answered <= 2).all()
    assert (answered == 2).any()


REFUSED: dict[str, tuple[str, str]] = {
    "memory": ("strategy=scaffold", r"pace: Scaffold has clients whose memory goes by rounds"),
    "pooled": ("strategy=centralised", r"pace: Centralised trains in one place"),
    "clusters": ("strategy=ifca", r"pace: IFCA has no model that all train"),
    "noise": ("strategy=dp_server_fixed", r"adds noise to the sum of a cohort"),
    "deadline": ("clients.deadline=3", r"clients\.deadline: is about the clients of a round"),
    "quorum": ("guard.min_results=2", r"guard\.min_results: is about the clients of a round"),
    "attack": ("attack=sign_flip attack.share=0.3", r"attack: is about the clients of a round"),
    "both": ("pace.period=3", r"pace: .*by buffer or by period; set one"),
    "rounds": ("pace=synchronous pace.buffer=5", r"pace: .*buffer means nothing in rounds"),
    "also rounds": ("pace=synchronous pace.rate=0.5", r"pace: .*rate means nothing in rounds"),
    "past it": ("pace=fedasync pace.rate=2", r"pace: .*rate is the part of the way"),
    "too many": ("pace.concurrency=9", r"pace\.concurrency: there are only 4 clients"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_rounds_is_refused_in_one_line(name: str, cache: str, tmp_path: Path) -> None:
    words, message = REFUSED[name]
    given = [*([] if "pace=" in words else ["pace=fedbuff"]), *words.split()]

    def start() -> None:
        simulate(configured(cache, *given), tmp_path / "run")

    with pytest.raises(ConfigError, match=message) as refused:
        start()
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("way", ["fedbuff", "fedasync"])
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(
    way: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is under way is in the checkpoint: who trains, from which model, and the answers."""
    fleet = ["clients.count=6", "pace.concurrency=4", "clients.table=true", "rounds=12"]
    words = [*WAYS[way], *UNEQUAL, *fleet, "runtime.cohort=off", BY_SINGLE_ANSWERS]
    config = configured(cache, *words, "checkpoint.every=2")
    monkeypatch.setattr(Plain, "last", 5)
    with pytest.raises(RunError, match="the power is off"):
        simulate(config, tmp_path / "stopped")
    monkeypatch.setattr(Plain, "last", 1000)
    newest = sorted((tmp_path / "stopped" / "checkpoints").iterdir())[-1]
    pace: dict[str, Any] = state_files.read(newest)["loop"]
    assert pace["clock"] > 0
    assert any(flight["content"] for flight in pace["flights"])
    simulate(configured(cache, *words), tmp_path / "whole")
    resume(tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_run_whose_clients_all_fail_ends(cache: str, tmp_path: Path) -> None:
    config = configured(cache, "pace=fedasync", *UNEQUAL)
    with pytest.raises(RunError, match=r"the last \d answers have all failed: .*power is off"):
        simulate(config, tmp_path / "run", until(config, 2))


def test_one_broken_client_does_not_end_a_run(cache: str, tmp_path: Path) -> None:
    words = ["pace=fedasync", *UNEQUAL, "rounds=12"]
    config = configured(cache, *words)
    app, ours = ClientApp(), clients.app.build(config)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 1:
            raise RuntimeError("it is broken")
        return ours(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return ours(message, context)

    simulate(config, tmp_path / "run", app)
    table = pd.read_csv(tmp_path / "run" / "history.csv", dtype={"failed": str})
    assert set(table["failed"].dropna()) == {"1"}
