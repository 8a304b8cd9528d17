"""Whole runs with clients of several sizes: what repeats, what is refused, what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments.commands.simulate import simulate
from fedwsa.config.component import Component, ConfigError
from fedwsa.models import build_model
from fedwsa.models.inputs import shape_from
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config
from server.federation import Federation
from tests.given.run_folders import weights
from tests.given.simulation import faulty

pytestmark = pytest.mark.usefixtures("all_cores")

SMALL = [
    *(
        "rounds=2",
        "clients.count=10",
        "clients.fraction=0.6",
        "local.epochs=1",
        "runtime.workers=2",
    ),
    *("local=differing", "partition=iid"),
]
MIXED = ["clients.sizes={S: 0.5, M: 0.3, L: 0.2}", "strategy=heterofl"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def mixed(cache: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed") / "run"
    simulate(configured(cache, *MIXED, "wsa=on", "clients.table=true"), folder)
    return folder


def configured(cache: str, *overrides: str) -> Config:
    return compose([*SMALL, f"cache_dir={cache}", *overrides])


def equal(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_three_sizes_learn_together_with_alignment_and_repeat(
    mixed: Path, cache: str, tmp_path: Path
) -> None:
    config = configured(cache, *MIXED, "wsa=on", "clients.table=true")
    simulate(config, tmp_path / "again")
    assert equal(mixed, tmp_path / "again")
    for file in ("history.csv", "sizes.csv", "scopes.csv", "clients.csv", "sizes.json"):
        assert (mixed / file).read_text() == (tmp_path / "again" / file).read_text()
    assert pd.read_csv(mixed / "history.csv")["failed"].isna().all()
    # One worker, and clients one by one: other sums of the same models.
    simulate(config.model_copy(update=one_worker(config)), tmp_path / "one")
    for key, weight in weights(mixed).items():
        torch.testing.assert_close(weights(tmp_path / "one")[key], weight, rtol=1e-4, atol=1e-6)


def one_worker(config: Config) -> dict[str, object]:
    return {"runtime": config.runtime.model_copy(update={"workers": 1, "cohort": "off"})}


def test_the_run_folder_says_who_had_which_size_and_what_each_reached(mixed: Path) -> None:
    said = json.loads((mixed / "sizes.json").read_text())
    assert sorted(said["clients"]) == ["L"] * 2 + ["M"] * 3 + ["S"] * 5
    assert said["models"]["S"]["width"] == 0.25
    table = pd.read_csv(mixed / "sizes.csv")
    assert table["size"].tolist() == ["L", "S", "M"] * 2
    history = pd.read_csv(mixed / "history.csv")
    largest = table[table["size"] == "L"]
    assert largest["accuracy"].tolist() == history["accuracy"].tolist()
    for number, cohort in enumerate(history["cohort"], 1):
        chosen = [said["clients"][int(c)] for c in cohort.split()]
        rows = table[table["round"] == number]
        assert {s: chosen.count(s) for s in "SML"} == dict(
            zip(rows["size"], rows["clients"], strict=True)
        )
    result = json.loads((mixed / "result.json").read_text())
    assert result["sizes"] == dict(zip(["L", "S", "M"], table["accuracy"][3:], strict=True))
    assert weights(mixed)["hidden0.weight"].shape == (200, 64)
    assert not list(mixed.glob("model-*"))


@pytest.mark.parametrize(
    "strategy", ["heterofl", "fedrolex", "fjord", "scalefl", "depthfl", "exclusive"]
)
def test_a_strategy_for_sizes_without_them_is_fedavg_to_the_bit(
    strategy: str, cache: str, tmp_path: Path
) -> None:
    for name, overrides in {
        "fedavg": ["strategy=fedavg"],
        "alone": [f"strategy={strategy}"],
        "all large": [
            f"strategy={strategy}",
            "clients.sizes={L: 1}",
        ],
    }.items():
        simulate(configured(cache, *overrides, "wsa=on", "wsa.strength=1"), tmp_path / name)
    # Each of six clients says of ten classes whether it has them, a number of eight bytes each;
    # here all have all. Where sizes may have arrays for themselves, it says of three layers, too.
    each = (10 + 3 * (strategy == "exclusive")) * 8
    said = {"fedavg": 0, "alone": 6 * each, "all large": 6 * each}
    histories = {name: pd.read_csv(tmp_path / name / "history.csv") for name in said}
    costs = ["bytes_up", "simulated_seconds"]
    first = histories["fedavg"]
    for name, history in histories.items():
        pd.testing.assert_frame_equal(
            history.drop(columns=costs), first.drop(columns=costs), check_exact=True
        )
        assert (history["bytes_up"] == first["bytes_up"] + said[name]).all()
    assert equal(tmp_path / "fedavg", tmp_path / "alone")
    assert equal(tmp_path / "fedavg", tmp_path / "all large")


def test_sizes_of_one_depth_have_no_exit_and_are_those_of_heterofl(
    cache: str, tmp_path: Path
) -> None:
    for name in ("heterofl", "scalefl"):
        simulate(configured(cache, *MIXED, f"strategy={name}", "wsa=on"), tmp_path / name)
    assert equal(tmp_path / "heterofl", tmp_path / "scalefl")


DEPTHS = "sizes={S: {width: 0.25, depth: 1}, M: {width: 0.5, depth: 2}, L: {width: 1.0, depth: 3}}"
RIVALS = {
    "fjord": ["strategy=fjord"],
    "fjord without distillation": ["strategy=fjord", "strategy.args.distill=false"],
    "scalefl": ["strategy=scalefl", DEPTHS, "local.mask_absent=true", "strategy.args.after=0"],
    "depthfl": [
        "strategy=depthfl",
        DEPTHS.replace("0.25", "1.0").replace("0.5", "1.0"),
        "strategy.args.weighted=clients",
    ],
    "exits of a cnn": ["strategy=scalefl", DEPTHS, "model=cnn", "wsa=off"],
    "feddf": ["strategy=feddf", "init.public=0.1", "strategy.args.steps=5"],
    "exclusive": ["strategy=exclusive"],
    # The smallest has no layer that templates make.
    "wave of a shallow size": [
        *("strategy=wave", DEPTHS, "init=wave", "init.public=0.1", "pretraining.teach.steps=2"),
        *("pretraining.learn.steps=2", "pretraining.fit.steps=2"),
    ],
}


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_can_be_checkpointed_and_do_not_depend_on_the_workers(
    name: str, cache: str, tmp_path: Path
) -> None:
    words = [*MIXED[:1], "wsa=on", "partition=dirichlet", *RIVALS[name]]
    config = configured(cache, *words, "checkpoint.every=1", "runtime.workers=1")
    simulate(config, tmp_path / "one")
    assert pd.read_csv(tmp_path / "one" / "history.csv")["failed"].isna().all()
    whole = configured(cache, *words)
    simulate(whole, tmp_path / "two")
    for key, weight in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[key], weight, rtol=1e-4, atol=1e-6)
    table = pd.read_csv(tmp_path / "one" / "sizes.csv")
    assert table["accuracy"].between(0, 1).all()
    assert sorted(set(table["size"])) == ["L", "M", "S"]


def test_strength_zero_changes_nothing_among_sizes(cache: str, tmp_path: Path) -> None:
    simulate(configured(cache, *MIXED, "wsa=off"), tmp_path / "off")
    simulate(configured(cache, *MIXED, "wsa=on", "wsa.strength=0"), tmp_path / "zero")
    assert equal(tmp_path / "off", tmp_path / "zero")


def test_depths_have_a_model_each_that_can_be_loaded(cache: str, tmp_path: Path) -> None:
    depths = [
        *("strategy=depthfl", "wsa=on", "sizes={A: {depth: 1}, B: {depth: 3}}"),
        "clients.sizes={A: 0.6, B: 0.4}",
    ]
    simulate(configured(cache, *depths), tmp_path)
    for file, depth in (("model", 3), ("model-A", 1), ("model-B", 3)):
        from safetensors import safe_open

        with safe_open(tmp_path / f"{file}.safetensors", "pt") as stored:
            facts = json.loads(stored.metadata()["fedwsa"])
        component, shape = Component.model_validate(facts["model"]), shape_from(facts["shape"])
        model = build_model(component, shape, facts["classes"], 0)
        model.load_state_dict(weights(tmp_path, f"{file}.safetensors"))
        assert facts["model"]["depth"] == depth
    assert pd.read_csv(tmp_path / "history.csv")["failed"].isna().all()
    scopes = pd.read_csv(tmp_path / "scopes.csv")
    assert scopes["layer"].nunique() == 4
    assert scopes["client_kl"].notna().all()


def test_clients_that_mask_scale_and_answer_wrong_shapes(cache: str, tmp_path: Path) -> None:
    options = [
        *("local.mask_absent=true", "strategy.args.scaler=true", "strategy.args.weighted=clients"),
        *("clients.fraction=1", "partition=pathological"),
    ]
    config = configured(cache, *MIXED, *options)
    result = simulate(config, tmp_path, faulty(config, {3: "shape"}))
    assert result["failed"] == 2
    log = (tmp_path / "run.log").read_text()
    size = json.loads((tmp_path / "sizes.json").read_text())["clients"][3]
    units = {"S": 50, "M": 100, "L": 200}[size]
    assert f"client 3 rejected: wrong arrays: hidden0.bias is ({units - 1},), not ({units},)" in log


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["clients.sizes={S: 0.5, L: 0.5}"],
            "clients.sizes: FedAvg averages models of one size; those for several are "
            "strategy=heterofl, fedrolex, fjord, depthfl, scalefl, wave, feddf, exclusive, fed",
        ),
        (
            [*MIXED, "model=vit", "model.patch=4", "sizes.S.width=0.3"],
            "sizes.S: width 0.3 gives 58 units, which are no heads of 24",
        ),
        (
            [*MIXED, "model=vit", "model.patch=4", "model.heads=4"],
            "sizes.M: blocks.0.attn.qkv.weight has units of 24 entries, in size S of 12",
        ),
        (
            ["clients.sizes={S: 0.5, L: 0.5}", "strategy=depthfl"],
            "strategy.args: size S has hidden0.weight of (50, 64), and L of (200, 64): sizes may",
        ),
        (
            [*MIXED, "sizes.S={width: 0.5, depth: 3}"],
            "strategy.args: size S has hidden2.weight, which L lacks: each must fit into the larg",
        ),
        (
            [*MIXED, "strategy=scalefl", "model.depth=1"],
            "model: mlp of depth=1 has one block, and early exits need a network",
        ),
        ([*MIXED, "strategy=feddf"], "strategy.args: FedDF distils on examples that the server"),
        ([*MIXED, "sizes.S={width: 0.5, breadth: 3}"], "sizes.S.breadth: mlp has no such argument"),
        ([*MIXED, "wsa=on", "wsa.align=after"], "wsa: align='after' needs models of one size"),
        ([*MIXED, "strategy.args.own='('"], "strategy.args: own='(' is not a regular expression"),
        (
            [*MIXED, "model._target_=tests.stranger_model.linear"],
            "model._target_: cannot import tests.stranger_model.linear",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    overrides: list[str], message: str, cache: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        Federation(configured(cache, *overrides), tmp_path / "run")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
