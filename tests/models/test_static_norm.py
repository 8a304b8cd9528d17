"""Static BatchNorm: statistics measured on training images before a score, and then fixed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from flwr.app import ConfigRecord
from torch import Tensor, nn

from clients.network import network_for
from experiments.commands.simulate import simulate
from fedwsa import seeding
from fedwsa.algorithms.objective import LocalRun, TrainedOn
from fedwsa.algorithms.oneshot.client import FisherInformation
from fedwsa.data.evaluation import evaluate, measure_statistics
from fedwsa.data.examples import Examples
from fedwsa.data.federated import open_federated
from fedwsa.data.images import ImageData
from fedwsa.merge.fisher_information import fisher_information
from fedwsa.models import state
from fedwsa.models.batch_norm import reestimate
from fedwsa.models.files import load_network
from fedwsa.models.inputs import ImageShape
from fedwsa.models.norms import StaticBatchNorm2d
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config
from fedwsa.schema.fleet import Fleet
from fedwsa.wire.names import STAYING

WORDS = [
    *("model=resnet20", "model.norm=static", "model.depth=8", "model.width=0.25", "rounds=1"),
    *("clients.count=6", "local.epochs=1", "runtime.workers=1", "evaluation.clients_every=1"),
    *("subset.train=400", "subset.test=100", "evaluation.validation=0.1"),
    *("strategy=heterofl", "evaluation.keep_best=true"),
    *("sizes={S: {width: 0.125}, L: {width: 0.25}}", "clients.sizes={S: 0.5, L: 0.5}"),
]


def tiny() -> nn.Sequential:
    with seeding.seeded(0, "tiny"):
        conv, head = nn.Conv2d(1, 2, 1), nn.Linear(8, 3)
    return nn.Sequential(conv, StaticBatchNorm2d(2), nn.Flatten(), head)


def images(count: int) -> Tensor:
    return torch.randn(count, 1, 2, 2, generator=seeding.generator(0, "images", count))


def test_training_goes_by_the_batch_and_gathers_nothing() -> None:
    model, x = tiny(), images(5)
    before = {k: b.clone() for k, b in model.named_buffers()}
    y = model[0](x)
    mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), keepdim=True, unbiased=False)
    expected = model[3](((y - mean) / (var + model[1].eps).sqrt()).flatten(1))
    torch.testing.assert_close(model.train()(x), expected)
    assert all(torch.equal(b, before[k]) for k, b in model.named_buffers())


def test_statistics_are_the_mean_over_batches_of_training_images_by_hand() -> None:
    model, x = tiny(), images(300)
    # Stored at half their size; the last batch of 44 counts as one of 128.
    measure_statistics(model.train(), x, lambda stored: 2 * stored, "cpu")
    assert model.training
    with torch.no_grad():
        seen = [model[0](2 * part) for part in (x[:128], x[128:256], x[256:])]
    mean = torch.stack([y.mean((0, 2, 3)) for y in seen]).mean(0)
    var = torch.stack([y.var((0, 2, 3)) for y in seen]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, var)
    model.eval()
    y = (model[0](x) - mean.view(1, 2, 1, 1)) / (var + model[1].eps).sqrt().view(1, 2, 1, 1)
    torch.testing.assert_close(model(x), model[3](y.flatten(1)))
    torch.testing.assert_close(model(x)[:1], model(x[:1]))
    # Anew, not on top; other kinds of norms keep theirs.
    mixed = nn.Sequential(nn.BatchNorm2d(1), model)
    reestimate(mixed, [x], StaticBatchNorm2d)
    assert mixed[0].num_batches_tracked == 0
    assert model[1].num_batches_tracked == 1
    with pytest.raises(ValueError, match="at least one batch"):
        measure_statistics(model, x[:0], lambda stored: stored, "cpu")


def test_a_network_that_is_not_measured_is_not_scored() -> None:
    some = Examples(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    data = ImageData(some, some, 3, mean=(0.0,), std=(1.0,))
    with pytest.raises(ValueError, match=r"^1: its statistics are not measured yet"):
        evaluate(tiny(), some, data, "cpu", 2)


def test_statistics_do_not_travel_and_are_forgotten_between_clients() -> None:
    config = compose(WORDS)
    model = network_for(config.model, ImageShape(1, 8, 8), 10, "cpu", {}, seed=0)
    names = set(state.measured(model.model))
    assert "norm.running_mean" in names
    assert not names & (state.travelling(model.model).keys() | state.staying(model.model).keys())
    assert names <= model.model.state_dict().keys()
    told = {"config": ConfigRecord({STAYING: "{}"})}
    weights = model.state()
    for _ in range(2):
        model.load(weights)
        assert not any(int(t) for k, t in state.measured(model.model).items() if "num" in k)
        measure_statistics(model.model, torch.randn(20, 1, 8, 8), lambda x: x, "cpu")
        model.require_built_alike(told)


def test_fisher_information_goes_by_the_statistics_of_the_client_s_samples() -> None:
    model, x, y = tiny(), images(6), torch.tensor([0, 1, 2, 0, 1, 2])
    asked = {"config": ConfigRecord({"fisher-labels": "observed", "fisher-layers": ["3.weight"]})}
    samples = TrainedOn(x, y, 3, lambda p: p, lambda purpose: torch.Generator())
    information = FisherInformation(model, asked, LocalRun(0.1, samples=samples))
    information.after(model)
    found = information.records()
    other = tiny()
    reestimate(other, [x])
    expected = fisher_information(other, x, y)["3.weight"]
    torch.testing.assert_close(found["fisher"]["3.weight"], expected)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path, Path]:
    folder = tmp_path_factory.mktemp("static")
    words = [*WORDS, f"cache_dir={folder / 'cache'}"]
    for name, size in (("few", 7), ("many", 512)):
        simulate(compose([*words, f"evaluation.batch_size={size}"]), folder / name)
    return compose(words), folder / "few", folder / "many"


def test_the_same_images_in_two_batchings_score_the_same(runs: tuple[Config, Path, Path]) -> None:
    _, few, many = runs
    for file in ("history.csv", "sizes.csv", "client_scores.csv"):
        one, other = (pd.read_csv(folder / file) for folder in (few, many))
        for column in ("accuracy", "loss", "validation_accuracy", "client_accuracy_mean"):
            if column in one:
                assert one[column].notna().all()
                assert one[column].tolist() == pytest.approx(other[column].tolist(), rel=1e-4)


@pytest.mark.parametrize("file", ["model", "best"])
def test_a_saved_network_scores_as_in_the_run(runs: tuple[Config, Path, Path], file: str) -> None:
    config, few, _ = runs
    data, saved = open_federated(config.data_spec), load_network(few / f"{file}.safetensors")
    score = evaluate(saved.module, data.whole.test, data.whole, "cpu", 33)
    [row] = pd.read_csv(few / "history.csv").to_dict("records")
    assert score.accuracy == pytest.approx(row["accuracy"])
    assert score.loss == pytest.approx(row["loss"], rel=1e-4)
    # Measured on what clients train on: neither hold-outs nor the validation split.
    trained_on = torch.cat([data.split(client)[0] for client in range(6)])
    x = data.whole.prepare(data.whole.train.inputs[trained_on])
    with torch.no_grad():
        seen = saved.module.stem(x).mean((0, 2, 3))
    torch.testing.assert_close(saved.module.norm.running_mean, seen, rtol=0.1, atol=0.02)


def test_clients_measure_on_their_own_training_samples(runs: tuple[Config, Path, Path]) -> None:
    config, few, _ = runs
    data, saved = open_federated(config.data_spec), load_network(few / "model.safetensors")
    scores = pd.read_csv(few / "client_scores.csv").set_index("client")
    large = [k for k, s in enumerate(Fleet(config).sizes(ImageShape(1, 8, 8), 10)) if s == "L"]
    assert large
    for client in large:
        own, held = (data.whole.train[part] for part in data.split(client))
        assert len(own) < 128  # in one batch
        reestimate(saved.module, [data.whole.prepare(own.inputs)])
        score = evaluate(saved.module, held, data.whole, "cpu", 512)
        assert score.accuracy == pytest.approx(scores.loc[client, "accuracy"])
        assert score.loss == pytest.approx(scores.loc[client, "loss"], rel=1e-3)
