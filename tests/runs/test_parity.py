"""The same apps on our engine and in Flower's simulation: the same cohorts, the same model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import ray
import torch
from flwr import simulation as flower
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedMedian,
    Krum,
    Strategy,
)
from rich.console import Console
from safetensors.torch import load_file

import clients.app
from fedwsa.algorithms.averaging import averages_by
from fedwsa.algorithms.scaffold.server import Scaffold
from fedwsa.algorithms.traits import Traits
from fedwsa.algorithms.wsa.server import FedWSA
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config
from fedwsa.simulation import run_simulation
from fedwsa.simulation.cluster import connect
from server.federation import Federation

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "fedavg": FedAvg,
    "fedavg+wsa": lambda: FedWSA(FedAvg()),
    "scaffold": Scaffold,
    "krum": lambda: Krum(num_malicious_nodes=1),
    "fedmedian": FedMedian,
    "dp": lambda: DifferentialPrivacyServerSideFixedClipping(
        FedAvg(), noise_multiplier=0.01, clipping_norm=5.0, num_sampled_clients=4
    ),
}
MODELS = {"mlp": "model=mlp", "cnn": "model=cnn"}
OURS = {
    "one worker": {"workers": 1},
    "two workers": {"workers": 2},
    "two workers again": {"workers": 2},
    "cohorts": {"workers": 2, "cohort": 3},
}


# λ=1 is close to what local steps can follow on the 100 weights of the small first convolution:
# it makes 4e-8 of rounding 1e-5 in the second round and 7e-5 in the third. λ=0.5 leaves it at 1e-7.
SIZES = "clients.sizes={S: 0.5, L: 0.5}"
SIZED = {
    "fedrolex": ["strategy=fedrolex", SIZES, "wsa=on", "wsa.strength=0.3"],
    "wave": ["strategy=wave", SIZES, "strategy.args.count=4"],
}
RUNS = [*STRATEGIES, *SIZED]


def configured(folder: Path, model: str, *overrides: str) -> Config:
    return compose(
        [
            *("rounds=2", "clients.count=8", "clients.fraction=0.5", "local.epochs=1"),
            *("local=differing", "partition.alpha=0.3", "model.width=0.5", "model.depth=2"),
            *(f"cache_dir={folder}", MODELS[model], "evaluation.clients_every=2"),
            *overrides,
        ]
    )


def federations(
    config: Config, sized: dict[str, Config], folder: Path, quiet: Console
) -> Iterator[Federation]:
    """A run of each strategy, to be started one after the other on one grid."""
    for name, own in sized.items():
        yield Federation(own, folder / name, quiet)
    for name, make in STRATEGIES.items():
        strategy = make()
        inner = strategy
        while hasattr(inner, "strategy"):
            inner = inner.strategy
        inner.fraction_train, inner.min_train_nodes, inner.min_available_nodes = 0.5, 1, 8
        inner.min_evaluate_nodes = 1
        yield Federation(config, folder / name, quiet, strategy=strategy)


def all_of(config: Config, sized: dict[str, Config], folder: Path) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        for federation in federations(config, sized, folder, Console(quiet=True)):
            federation.start(grid)

    return app


@pytest.fixture(scope="module", params=["mlp", pytest.param("cnn", marks=pytest.mark.slow)])
def runs(request, tmp_path_factory, no_ray) -> Path:
    """Run folders RUNTIME/STRATEGY of one model."""
    folder = tmp_path_factory.mktemp(request.param)
    config = configured(folder / "cache", request.param)
    sized = {n: configured(folder / "cache", request.param, *own) for n, own in SIZED.items()}
    flower.run_simulation(
        all_of(config, sized, folder / "flower"),
        clients.app.build(config),
        8,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 2, "log_to_driver": False},
        },
    )
    connect(None, num_cpus=2)
    for name, options in OURS.items():
        run_simulation(
            all_of(config, sized, folder / name),
            clients.app.build(config),
            8,
            keep_workers=True,  # as a sweep does
            **options,
        )
    ray.shutdown()
    return folder


def model(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("strategy", RUNS)
def test_every_runtime_gives_the_same_cohorts_and_the_same_model(runs: Path, strategy: str):
    reference, history = model(runs / "flower" / strategy), cohorts(runs / "flower" / strategy)
    assert len(set(history)) > 1
    for name in OURS:
        assert cohorts(runs / name / strategy) == history
        own = model(runs / name / strategy)
        for key, weight in reference.items():
            torch.testing.assert_close(own[key], weight, rtol=1e-4, atol=1e-6)


def cohorts(folder: Path) -> list[str]:
    table = pd.read_csv(folder / "history.csv")
    assert table["failed"].isna().all()
    assert table["client_accuracy_mean"].notna().tolist() == [False, True]
    return table["cohort"].tolist()


@pytest.mark.parametrize("strategy", RUNS)
def test_a_run_repeats_to_the_bit(runs: Path, strategy: str) -> None:
    first, second = (runs / name / strategy for name in ("two workers", "two workers again"))
    one, other = model(first), model(second)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert (first / "history.csv").read_text() == (second / "history.csv").read_text()


def test_strategies_learn_different_things(runs: Path) -> None:
    # Else the comparisons above would compare nothing.
    models = [model(runs / "two workers" / name) for name in RUNS]
    for i, one in enumerate(models):
        for other in models[:i]:
            assert any(
                one[k].shape != other[k].shape or not torch.allclose(one[k], other[k], rtol=1e-3)
                for k in one
            )


def test_only_averaging_strategies_are_reduced() -> None:
    reduced = {name: averages_by(make()) for name, make in STRATEGIES.items()}
    assert {name for name, key in reduced.items() if key} == {"fedavg", "fedavg+wsa"}


def test_a_strategy_is_reduced_only_if_it_says_so_itself() -> None:
    class Stranger(FedAvg):
        pass

    class Declared(FedAvg):
        traits = Traits(averages_by="weight")

    class Heir(Declared):
        pass

    assert [averages_by(s()) for s in (Stranger, Declared, Heir)] == [None, "weight", None]
    assert averages_by(FedAvg(weighted_by_key="n")) == "n"
    assert averages_by(FedAvg(train_metrics_aggr_fn=lambda records, key: None)) is None
    assert averages_by(FedWSA(Stranger())) is None
