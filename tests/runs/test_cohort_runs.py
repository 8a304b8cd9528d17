"""Runs whose clients train in stacks: the same models as of clients that train one by one."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from safetensors.torch import load_file

from clients import cohort
from clients.app import build
from experiments.commands.simulate import simulate
from fedwsa.data.federated import open_federated
from fedwsa.models import build_model
from fedwsa.models.inputs import ImageShape
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config
from fedwsa.simulation import CohortReply
from fedwsa.wire import messages
from tests.given.spoilt import CLIENT

IMAGES = ["dataset._target_=tests.given.small_images.small_images", "partition=iid"]
SERIES = ["dataset._target_=tests.given.small_series.small_series", "partition=iid"]
RUNS = {
    "time series": [*SERIES, "model=cnn1d", "model.width=0.25", "wsa=on", "strategy=scaffold"],
    "dropout": [*IMAGES, "model=cnn_pfl", "model.width=0.1"],
    "statistics of norms": [
        "model._target_=tests.given.odd_models.everything",
        *("~model.width", "~model.depth", "partition=iid"),
    ],
    "a norm of one's own": [*IMAGES, "strategy=fedbn", "model=resnet20", "model.width=0.1"],
    "a head of one's own": ["strategy=fedper", "model.width=0.1"],
    "optimisers": ["local.optimisers=[sgd,adam,adamw]", "local.clip_norm=1"],
    "conditions": [
        *("local.batch_sizes=[8,16]", "local.epoch_factors=[1,2]", "local.lr_factors=[0.5,1]"),
        *("local.weight_decays=[0,0.01]", "strategy=scaffold", "wsa=on"),
    ],
    "half precision": ["local.precision=bf16", "model=cnn", "model.width=0.1"],
    "deadlines": [
        *("clients.deadline=1.5", "clients.late=cut", "clients.speed_spread=1"),
        "clients.flops_per_second=1e8",
    ],
    "every reply is wanted": ["strategy=fedmedian"],
    "aligned": ["wsa=on"],
    "absent classes": ["local.mask_absent=true", "partition.alpha=0.1"],
    "a loss of one's own": [  # of the clients of round 2, three were there in round 1
        *("strategy=moon", "clients.fraction=0.6", "local.batch_sizes=[8,16]", "wsa=on"),
        *("model._target_=tests.given.odd_models.everything", "~model.width", "~model.depth"),
    ],
    "a loss of single layers": [*IMAGES, "strategy=moon", "model=cnn_pfl", "model.width=0.1"],
    "a look at each trained model": ["strategy=oneshot", "merge=fisher", "rounds=1"],
    "privacy": ["strategy=dp_client_adaptive"],
    "privacy of one's own": ["privacy.local={clipping_norm: 1.0, epsilon: 50.0}"],
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_in_stacks_is_the_run_one_by_one(kind: str, tmp_path: Path) -> None:
    fleet = ["rounds=2", "clients.count=8", "local.epochs=1", "runtime.workers=1"]
    more = ["clients.table=true", f"cache_dir={tmp_path}/cache"]
    for name, size in (("alone", "off"), ("stacked", 4)):
        config = compose([*fleet, *more, *RUNS[kind], f"runtime.cohort={size}"])
        simulate(config, tmp_path / name)
    assert "one by one" not in (tmp_path / "stacked" / "run.log").read_text()
    alone, stacked = (tmp_path / name for name in ("alone", "stacked"))
    if (alone / "model.safetensors").exists():  # else the clients have models of their own
        one, other = (load_file(folder / "model.safetensors") for folder in (alone, stacked))
        for name, tensor in one.items():
            if kind not in ("optimisers", "half precision"):
                torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-5)
        # Adam makes a step as long as its rate even of what is rounding alone, in a few places.
        both = [torch.cat([t.double().flatten() for t in of.values()]) for of in (one, other)]
        near = 1e-2 if kind == "half precision" else 1e-4
        assert (both[0] - both[1]).norm() < near * both[0].norm()
    if kind == "half precision":
        return  # a sample's prediction may be another
    for table in ("clients.csv", "client_scores.csv"):
        one, other = (numbers(folder / table) for folder in (alone, stacked))
        pd.testing.assert_frame_equal(one, other, rtol=1e-3)


def numbers(file: Path) -> pd.DataFrame:
    """A table whose lists of numbers are columns."""
    table = pd.read_csv(file)
    for name in table.select_dtypes(exclude="number").columns:
        lists = table.pop(name).str.split(expand=True).astype(float)
        table = table.join(lists.add_prefix(name))
    return table


def test_what_cannot_be_stacked_is_said_once(tmp_path: Path) -> None:
    fleet = ["rounds=2", "clients.count=4", "local.epochs=1", "runtime.workers=1"]
    config = compose([*fleet, f"cache_dir={tmp_path}", "strategy=wave", "runtime.cohort=4"])
    simulate(config, tmp_path / "run")
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count("one by one, since their weights are made from templates") == 1


@pytest.mark.parametrize("spoilt", ["NotANumber", "Raises"])
def test_a_client_that_spoils_a_stack_fails_alone(spoilt: str, tmp_path: Path) -> None:
    """The others' answers are those that they would have been."""
    fleet = ["rounds=1", "clients.count=6", "local.epochs=1", "runtime.workers=1"]
    more = [f"local.objectives=[tests.given.spoilt.{spoilt}]", f"cache_dir={tmp_path}/cache"]
    folders = {}
    for size in ("off", 6):
        folders[size] = tmp_path / str(size)
        overrides = [*fleet, *more, "clients.table=true", f"runtime.cohort={size}"]
        result = simulate(compose(overrides), folders[size])
        assert result["failed"] == 1
        assert pd.read_csv(folders[size] / "history.csv")["failed"].tolist() == [CLIENT]
    alone, stacked = (numbers(folder / "clients.csv") for folder in folders.values())
    pd.testing.assert_frame_equal(alone, stacked, rtol=1e-4)
    models = [load_file(folder / "model.safetensors") for folder in folders.values()]
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, rtol=1e-4, atol=1e-6)


def stacked(config: Config) -> list[dict[str, torch.Tensor]]:
    """What six clients answer who train at once, in this process."""
    app = build(config)
    shape, classes = ImageShape(1, 8, 8), 10
    arrays = messages.to_arrays(build_model(config.model, shape, classes, 0).state_dict())
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})})
    sent = [Message(content, node, "train") for node in range(6)]
    contexts = [Context(1, n, {"partition-id": n}, RecordDict(), {}) for n in range(6)]
    assert app.train_cohort is not None
    replies = app.train_cohort(sent, contexts)
    assert isinstance(replies, CohortReply), replies
    return [messages.to_tensors(replies.content(k)["arrays"]) for k in range(6)]


@pytest.mark.usefixtures("task_identity")
def test_what_does_not_fit_into_memory_is_trained_in_halves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = compose(["clients.count=6", "local.epochs=1", f"cache_dir={tmp_path}"])
    whole = stacked(config)
    # An epoch of two clients at most: 1437 digits of 64 numbers in six unequal shares.
    longest = max(map(len, open_federated(config.data_spec).partition.shares))
    monkeypatch.setattr(cohort, "MOST_BYTES", 2 * longest * 64 * 4)
    for one, other in zip(whole, stacked(config), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=1e-4, atol=1e-6)
