"""What the papers promise of each algorithm, in the engine, with one worker and with two."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from safetensors.torch import load_file

from experiments.commands.simulate import simulate
from fedwsa.algorithms.feddyn.server import FedDyn
from fedwsa.algorithms.fednova.server import FedNova
from fedwsa.algorithms.scaffold.server import Scaffold
from fedwsa.models import build_model
from fedwsa.models.inputs import ImageShape
from fedwsa.schema.compose import compose
from tests.given.quadratics import BEGIN, JOINT, A, B, Descent, Exact, app, run

ALL = {"fraction_evaluate": 0.0, "min_train_nodes": 3, "min_available_nodes": 3}
TINY = ["clients.count=4", "local.epochs=2", "model.width=0.1", "evaluation.clients_every=99"]

workers = pytest.mark.parametrize("workers", [1, 2])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@workers
def test_scaffold_has_the_mean_of_the_clients_controls_and_reaches_the_joint_minimiser(
    workers: int,
) -> None:
    # All clients, plain SGD: c = mean(c_i) after every round (algorithm 1, option II).
    strategy = Scaffold(**ALL)
    models, metrics = run(strategy, app(Descent((5, 5, 5))), workers, 50)
    assert strategy.control is not None
    np.testing.assert_allclose(strategy.control["w"], metrics[-1]["control"], atol=1e-12)
    np.testing.assert_allclose(models[-1], JOINT, atol=1e-4)


@workers
def test_feddyn_begins_with_twice_fedavg_s_step_and_ends_at_the_joint_minimum(
    workers: int,
) -> None:
    # Round 1 of all clients: h = −α·mean(Δ), so w = mean(w_k) + mean(Δ) = w_g + 2·mean(Δ).
    alpha = 0.5
    models, _ = run(FedDyn(alpha, **ALL), app(Exact(alpha)), workers, 100)
    w = np.array(BEGIN)
    # By hand: client k's minimum of a/2‖w − b‖² + α/2‖w − w_g‖².
    solved = [(a * np.array(b) + alpha * w) / (a + alpha) for a, b in zip(A, B, strict=True)]
    np.testing.assert_allclose(models[0], w + 2 * (np.mean(solved, axis=0) - w))
    np.testing.assert_allclose(models[-1], JOINT, atol=1e-6)
    fedavg, _ = run(FedAvg(**ALL), app(Exact()), workers, 5)
    np.testing.assert_allclose(fedavg[-1], np.mean(B, axis=0))  # exact solves: the mean of b_k
    assert np.abs(fedavg[-1] - JOINT).max() > 0.1


@workers
def test_fednova_weighs_updates_by_examples_however_many_steps_made_them(workers: int) -> None:
    steps, examples, lr, m = (1, 4, 7), (10, 30, 20), 0.1, 0.5
    training = app(Descent(steps, lr, m), examples)
    models, _ = run(FedNova(**ALL), training, workers, 1)
    # The paper's formula, from the clients' own paths: ‖a‖₁ = Σ_j (1 − m^j)/(1 − m).
    p, w = np.array(examples) / sum(examples), np.array(BEGIN)
    norms = [sum((1 - m**j) / (1 - m) for j in range(1, k + 1)) for k in steps]
    updates = []
    for a, b, k, norm in zip(A, B, steps, norms, strict=True):
        x, v = w.copy(), np.zeros(2)
        for _ in range(k):
            v = m * v + a * (x - np.array(b))
            x = x - lr * v
        updates.append((w - x) / norm)
    expected = w - (p @ norms) * (p @ np.array(updates))
    np.testing.assert_allclose(models[0], expected, rtol=1e-12)


@workers
def test_fednova_with_equal_steps_is_fedavg(workers: int) -> None:
    training = app(Descent((4, 4, 4)), (10, 30, 20))
    nova, _ = run(FedNova(**ALL), training, workers, 3)
    plain, _ = run(FedAvg(**ALL), training, workers, 3)
    np.testing.assert_allclose(nova, plain, rtol=1e-12)


def trained(folder: Path, cache: str, workers: int, *overrides: str) -> dict[str, torch.Tensor]:
    config = compose([*TINY, f"cache_dir={cache}", f"runtime.workers={workers}", *overrides])
    simulate(config, folder)
    return load_file(folder / "model.safetensors")


@workers
def test_without_their_terms_fedprox_and_moon_are_fedavg_to_the_bit(
    workers: int, cache: str, tmp_path: Path
) -> None:
    rest = ["rounds=3", "partition.alpha=0.5", "runtime.cohort=off"]
    plain = trained(tmp_path / "fedavg", cache, workers, *rest)
    for term in ("fedprox strategy.args.proximal_mu=0.0", "moon strategy.args.mu=0"):
        name = term.split()[0]
        other = trained(tmp_path / name, cache, workers, f"strategy={term}".split()[0], *rest)
        off = trained(tmp_path / f"{name}-off", cache, workers, *f"strategy={term}".split(), *rest)
        assert all(torch.equal(plain[k], off[k]) for k in plain), name
        assert not all(torch.equal(plain[k], other[k]) for k in plain), name


@workers
def test_one_client_with_everything_is_centralised_training(
    workers: int, cache: str, tmp_path: Path
) -> None:
    rest = ["rounds=2", "partition=iid", "local=differing"]
    one = trained(tmp_path / "one", cache, workers, *rest, "clients.count=1", "local=equal")
    # The reference has the usual conditions, whatever the clients draw.
    pooled = trained(
        tmp_path / "pooled", cache, workers, *rest, "clients.count=1", "strategy=centralised"
    )
    assert all(torch.equal(one[k], pooled[k]) for k in one)


def test_the_reference_trains_on_all_clients_samples_and_no_hold_out(
    cache: str, tmp_path: Path
) -> None:
    once = ["rounds=1", "strategy=centralised", "clients.table=true"]
    simulate(compose([*TINY, f"cache_dir={cache}", *once]), tmp_path / "run")
    columns, values = (tmp_path / "run" / "clients.csv").read_text().splitlines()
    examples = int(dict(zip(columns.split(","), values.split(","), strict=True))["num-examples"])
    partition = json.loads((tmp_path / "run" / "partition.json").read_text())
    sizes = [len(share) for share in partition["indices"]]
    assert examples == sum(n - round(0.2 * n) for n in sizes)


@workers
def test_feddyn_on_a_network_goes_twice_as_far_as_fedavg_at_first(
    workers: int, cache: str, tmp_path: Path
) -> None:
    """With equal shares; α so small that it does not change where the clients go."""
    rest = ["rounds=1", "partition=iid", "clients.count=2", "local.momentum=0", "seed=4"]
    alpha = "strategy.args.alpha=1e-7"
    plain = trained(tmp_path / "fedavg", cache, workers, *rest)
    dyn = trained(tmp_path / "feddyn", cache, workers, *rest, "strategy=feddyn", alpha)
    config = compose([*TINY, *rest])
    begin = dict(build_model(config.model, ImageShape(1, 8, 8), 10, 4).named_parameters())
    for name, value in plain.items():
        step = value - begin[name].detach()
        assert step.abs().max() > 1e-4
        # The shares differ by a sample, and FedDyn counts each client once: not to the bit.
        off = dyn[name] - begin[name].detach() - 2 * step
        assert off.norm() < 0.01 * step.norm(), name
