"""Schedules: torch's own have the same values, and a run goes by them."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR, StepLR

from clients.received import conditions_of
from experiments.commands.simulate import resume, simulate
from fedwsa.config.component import Component, ConfigError
from fedwsa.fleet import schedules
from fedwsa.schema.compose import compose
from fedwsa.schema.schedule import factor, factors
from tests.given.checkpoint import assert_same_run, interrupted

ROUNDS = 12


def of_torch(name: str, optimizer: torch.optim.Optimizer) -> LRScheduler:
    if name == "step":
        return StepLR(optimizer, 5, 0.3)
    if name == "linear":
        return LinearLR(optimizer, 1.0, 0.1, ROUNDS)
    if name == "cosine":
        return CosineAnnealingLR(optimizer, ROUNDS, 0.1)
    parts = [LinearLR(optimizer, 1 / 4, 1.0, 3), CosineAnnealingLR(optimizer, ROUNDS - 4, 0.1)]
    return SequentialLR(optimizer, parts, [4])


KEYS = {
    "step": {"every": 5, "factor": 0.3},
    "linear": {"floor": 0.1},
    "cosine": {"floor": 0.1},
    "warmup_cosine": {"warmup": 4, "floor": 0.1},
}


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
@pytest.mark.parametrize("name", KEYS)
def test_the_rates_are_those_of_torch(name: str) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = of_torch(name, optimizer)
    for t in range(ROUNDS):
        own = getattr(schedules, name)(t, ROUNDS, **KEYS[name])
        assert own == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12), t
        optimizer.step()
        scheduler.step()


def test_inverse_sqrt_is_the_transformer_s_scaled_to_one_at_its_peak() -> None:
    def paper(step: int, warmup: int) -> float:  # equation 3, without d_model
        return min(step**-0.5, step * warmup**-1.5)

    found = [schedules.inverse_sqrt(t, ROUNDS, warmup=4) for t in range(ROUNDS)]
    expected = [paper(t + 1, 4) / paper(4, 4) for t in range(ROUNDS)]
    assert found == pytest.approx(expected)
    assert found[3] == max(found) == 1.0


def halving(t: int, rounds: int) -> float:
    return 0.5**t


def negative(t: int, rounds: int) -> float:
    return 1.0 - t


def of(target: str, **keys: object) -> Component:
    return Component.model_validate({"_target_": target, **keys})


def test_one_of_one_s_own_is_a_function() -> None:
    own = of(f"{__name__}.halving")
    assert [factor(own, 3, n, "schedule") for n in (1, 2, 3, 9)] == [1.0, 0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (of(f"{__name__}.negative"), r"schedule: round 2: the factor must be above 0, not 0\.0"),
        (of(f"{__name__}.none"), "schedule._target_: .* has no none"),
        (
            of("fedwsa.fleet.schedules.step", every=0, factor=0.5),
            r"schedule\.every: .*greater than 0",
        ),
        (
            of("fedwsa.fleet.schedules.warmup_cosine", warmup=3, floor=0.0),
            "schedule: warmup=3 leaves none of 3 rounds",
        ),
    ],
)
def test_what_gives_no_rate_is_refused(component: Component, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        factors(component, 3, "schedule")


FLEET = ["rounds=3", "clients.count=3", "local.epochs=1", "runtime.workers=1", "model.width=0.1"]
OWN = f"{__name__}.halving"


def test_a_run_trains_at_the_rates_of_its_rounds(tmp_path: Path) -> None:
    """Round 1 is that of a run without a schedule, what follows is not."""
    cache = f"cache_dir={tmp_path}/cache"
    scheduled = compose([*FLEET, cache, f"schedule._target_={OWN}", "local.lr=0.4"])
    simulate(scheduled, tmp_path / "run")
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history["lr"].tolist() == pytest.approx([0.4, 0.2, 0.1])
    assert history["server_lr"].isna().all()
    simulate(compose([*FLEET, cache, "local.lr=0.4"]), tmp_path / "constant")
    constant = pd.read_csv(tmp_path / "constant" / "history.csv")
    assert constant["train_loss"][0] == history["train_loss"][0]
    assert constant["train_loss"][2] != history["train_loss"][2]


@pytest.mark.parametrize("local", ["local.optimiser=sgd", "local.optimiser=adam"])
def test_a_last_round_at_a_rate_of_almost_nothing_moves_nothing(local: str, tmp_path: Path) -> None:
    schedule = ["schedule=step", "schedule.every=1", "schedule.factor=1e-12"]
    words = [*FLEET, f"cache_dir={tmp_path}/cache", local, "local.weight_decay=0"]
    simulate(compose([*words, *schedule]), tmp_path / "run")
    simulate(compose([*words, "rounds=1"]), tmp_path / "one")
    models = [load_file(tmp_path / name / "model.safetensors") for name in ("run", "one")]
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, rtol=0, atol=1e-7)


def test_the_server_s_rate_goes_by_its_own_and_a_resume_goes_on_in_both(tmp_path: Path) -> None:
    words = ["strategy=fedadam", "schedule=cosine"]
    words += ["schedule@server_schedule=linear", "server_schedule.floor=0.5"]
    config = interrupted(tmp_path / "run", str(tmp_path / "cache"), 2, 3, *words)
    resume(tmp_path / "run")
    simulate(config, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history["server_lr"].tolist() == pytest.approx([0.01, 0.009, 0.008, 0.007, 0.006])
    cosine = [0.015 * (1 + math.cos(math.pi * t / 5)) for t in range(5)]
    assert history["lr"].tolist() == pytest.approx(cosine)


def test_weight_decay_goes_by_its_own_for_each_client_s_own(tmp_path: Path) -> None:
    words = [*FLEET, f"cache_dir={tmp_path}/cache", "local.weight_decays=[0.2,0.4]", "seed=3"]
    schedule = ["schedule@decay_schedule=step", "decay_schedule.every=1"]
    config = compose([*words, *schedule, "decay_schedule.factor=0.5"])
    decays = [[conditions_of(config, {}, k, t).weight_decay for t in (1, 2, 3)] for k in range(4)]
    assert {own[0] for own in decays} == {0.2, 0.4}
    assert decays == [pytest.approx([own[0], own[0] / 2, own[0] / 4]) for own in decays]
    assert {conditions_of(config, {}, 0, t).lr for t in (1, 2, 3)} == {config.local.lr}
    # Decay that is gone after the first round leaves larger weights than decay that stays.
    runs = {"gone": [*schedule, "decay_schedule.factor=1e-9"], "stays": []}
    for name, more in runs.items():
        simulate(compose([*words, *more]), tmp_path / name)
    gone, stays = (load_file(tmp_path / name / "model.safetensors") for name in runs)
    norms = [sum(float(t.square().sum()) for t in model.values()) for model in (gone, stays)]
    assert norms[0] > norms[1] * 1.01
    with pytest.raises(ConfigError, match=r"say schedule@decay_schedule=cosine"):
        compose([*words, "decay_schedule=cosine"])


def test_a_strategy_without_a_rate_has_none_to_schedule(tmp_path: Path) -> None:
    config = compose([*FLEET, "schedule@server_schedule=cosine", f"cache_dir={tmp_path}"])
    with pytest.raises(ConfigError, match="server_schedule: FedAvg has no learning rate"):
        simulate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
