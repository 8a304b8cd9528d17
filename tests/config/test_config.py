"""Composing and checking a configuration."""

from __future__ import annotations

import inspect
import shlex

import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from hydra.errors import HydraException

from experiments.commands.help import help_text
from fedwsa.algorithms.sizes.server import SizedFedAvg
from fedwsa.algorithms.wsa.server import FedWSA
from fedwsa.config.component import Component, ConfigError, build, check_arguments, locate
from fedwsa.config.explain import explain
from fedwsa.config.places import CONFIG_DIR
from fedwsa.fleet.devices import resolve_device
from fedwsa.merge.average import average
from fedwsa.models import build_model
from fedwsa.models.architecture import Architecture
from fedwsa.models.exits import Exits
from fedwsa.models.inputs import ImageShape
from fedwsa.schema.compose import compose
from server.strategy import SIZED


def options(group: str) -> list[str]:
    return sorted(f.stem for f in (CONFIG_DIR / group).glob("*.yaml"))


GROUPS = [
    "dataset",
    "partition",
    "skew",
    "attack",
    "model",
    "init",
    "strategy",
    "wsa",
    "local",
    "pace",
    "sampler",
    "compress",
]


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_composes_and_fits_its_signature(group: str) -> None:
    for option in options(group):
        config = compose([f"{group}={option}", *NEEDED.get(option, [])])
        part = getattr(config, group)
        if group == "dataset":
            part = part.source
        if group == "compress":
            part = part.rule
        if group == "strategy":
            part = part.component
        if group == "init":
            part = part.method
        if isinstance(part, Component):
            given = {"partition": 3, "model": 2, "sampler": 2, "compress": 2}.get(group, 0)
            made = locate(part.target, group)
            asked = inspect.signature(made).parameters
            known = {  # what the server knows
                "shapes": {},
                "architecture": Architecture(),
                "head": "head.",
                "norms": [],
                "num_sampled_clients": 1,
                "root": lambda model, number: model,
                "distilled": lambda students, teachers, number, how: students,
                "exits": Exits({}, "head", {}, {}),
                "merge": average,
            }
            facts = {k: v for k, v in known.items() if group == "strategy" and k in asked}
            inner = {"strategy": FedAvg()} if "strategy" in part.arguments else {}
            data = {"ids", "pixels", "positions", "fingerprint"}  # what partitions may ask for
            supplied = data if group == "partition" else ()
            check_arguments(made, {**part.arguments, **facts, **inner}, group, given, supplied)


NEEDED = {
    "parquet": ["dataset.path=x"],
    "image_folder": ["dataset.path=x"],
    "csv": ["dataset.path=x"],
    "numpy": ["dataset.path=x"],
    "hub": ["dataset.name=x"],
    "shakespeare": ["dataset.path=x"],
    "from_file": ["partition.path=x"],
    "size": ["partition.sizes=[1]"],
}


def test_all_strategies_for_several_sizes_are_named_where_one_is_asked_for() -> None:
    targets = {o: compose([f"strategy={o}"]).strategy.target for o in options("strategy")}
    kinds = {o: locate(target, "strategy") for o, target in targets.items()}
    assert {o for o, kind in kinds.items() if issubclass(kind, SizedFedAvg)} == set(SIZED)


def test_switching_alignment_on_changes_nothing_else() -> None:
    off, on = compose(["wsa=off", "wsa.strength=3"]), compose(["wsa=on", "wsa.strength=3"])
    assert (off.wsa.enabled, on.wsa.enabled) == (False, True)
    assert off.model_copy(update={"wsa": on.wsa}) == on
    assert (off.label, on.label) == ("FedAvg", "FedAvg+WSA")


def test_the_default_strength_is_left_to_the_strategy() -> None:
    sizes = ["strategy=heterofl", "clients.sizes={S: 0.5, L: 0.5}"]
    assert compose(["wsa=on", *sizes]).wsa.strength is None
    assert compose(["wsa=on", *sizes, "wsa.strength=2"]).wsa.strength == 2.0


@pytest.mark.parametrize("reduction", ["layer", "entries"])
def test_the_default_strength_follows_reduction_and_normalised_scopes(reduction: str) -> None:
    one = FedWSA(FedAvg(), reduction=reduction)
    several = FedWSA(FedAvg(), reduction=reduction, normalise=True)
    expected = {"layer": (1.0, 10.0), "entries": (0.01, 0.01)}[reduction]
    assert (one.strength, several.strength) == expected


def test_a_strategy_takes_free_arguments() -> None:
    config = compose(["strategy=fedadam", "strategy.args.eta=0.5", "strategy.args.eta_l=0.2"])
    assert config.strategy.args == {
        "eta": 0.5,
        "beta_1": 0.9,
        "beta_2": 0.99,
        "tau": 0.001,
        "eta_l": 0.2,
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("rounds=0", "rounds: input should be greater than 0 (got 0)"),
        ("rounds=three", "rounds: input should be a valid integer (got 'three')"),
        ("rounds=2.5", "rounds: input should be a valid integer"),
        ("rounds=true", "rounds: input should be a valid integer (got True)"),
        ("clients.fraction=0", "clients.fraction: input should be greater than 0 (got 0)"),
        ("clients.fraction=1.5", "clients.fraction: input should be less than or equal to 1"),
        ("clients.count=-1", "clients.count: input should be greater than 0"),
        ("local.momentum=1", "local.momentum: input should be less than 1"),
        ("local.lr=nan", "local.lr: input should be a finite number"),
        ("'local.lr_factors=[]'", "local.lr_factors: list should have at least 1 item"),
        ("wsa.strength=-1", "wsa.strength: input should be greater than or equal to 0"),
        ("wsa.fusion=median", "wsa.fusion: input should be 'moments', 'mean_variance' or"),
        ("wsa.target=fixed", "wsa: target=fixed needs wsa.scope=FILE"),
        ("device=tpu", "device: input should be 'auto', 'cpu', 'cuda' or 'mps' (got 'tpu')"),
        ("dataset=parquet", "dataset.path: must be given"),
        ("rounds=0 seed=-1", "rounds: input should be greater than 0 (got 0); seed: input"),
    ],
)
def test_wrong_values_are_one_line_with_what_is_allowed(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(shlex.split(overrides))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rouns=3", "rouns: unknown key; did you mean rounds? fedwsa --help lists all"),
        (
            "guard.foo=1",
            "guard.foo: unknown key; guard has max_examples, max_norm_ratio, max_scope_kl,",
        ),
        ("clients.number=3", "clients.number: unknown key;"),
        ("local.learning_rate=3", "local.learning_rate: unknown key;"),
        ("wsa=maybe", "wsa=maybe: no such option; allowed: off, on"),
        ("models=cnn", "models: unknown key; did you mean model?"),
        ("partition.alfa=1", "partition.alfa: unknown key; did you mean partition.alpha?"),
        ("rounds=[1", "cannot read 'rounds=[1'; a value with special characters"),
    ],
)
def test_unknown_keys_and_options_are_one_line(override: str, message: str) -> None:
    with pytest.raises(HydraException) as caught:
        compose([override])
    line = explain(caught.value)
    assert line.startswith(message)
    assert "\n" not in line


def test_models_have_the_shapes_and_sizes_that_are_known() -> None:
    def count(name: str, image: tuple[int, int, int], *overrides: str) -> int:
        config = compose([f"model={name}", *overrides])
        net = build_model(config.model, ImageShape(*image), 10, seed=0)
        assert net(torch.randn(2, *image)).shape == (2, 10)
        return sum(p.numel() for p in net.parameters())

    # pfl-research's CIFAR-10 benchmark: 3·9·32+32 + 32·9·64+64 + 12544·128+128 + 128·10+10.
    assert count("cnn_pfl", (3, 32, 32)) == 1_626_442
    # 64·200+200 + 200·200+200 + 200·10+10.
    assert count("mlp", (1, 8, 8)) == 55_210
    assert count("mlp", (1, 8, 8), "model.width=0.5", "model.depth=1") == 64 * 100 + 100 + 1010
    assert count("mlp", (1, 8, 8), "model.depth=0") == 650
    # The eight convolutions of VGG11 hold 9,217,728 weights and 2752 biases; then a classifier
    # without biases. The five of VGG8 by hand: 9·(3·64 + 64·128 + 128·256 + 256·512 + 512·512).
    assert count("vgg11", (3, 32, 32)) == 9_217_728 + 2752 + 512 * 10
    five = 9 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 512)
    assert count("vgg8", (3, 32, 32)) == five + (64 + 128 + 256 + 512 + 512) + 512 * 10
    assert count("vgg8", (3, 64, 64)) == count("vgg8", (3, 32, 32))
    # He et al., table 6: 0.27 M for ResNet-20; projections add a little.
    assert round(count("resnet20", (3, 32, 32)), -4) == 270_000
    assert count("resnet20", (3, 32, 32), "model.norm=batch") == count("resnet20", (3, 32, 32))
    assert count("vgg8", (3, 32, 32), "model.norm=group", "model.width=0.25") > 0
    assert count("cnn", (1, 8, 8), "model.depth=3") > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("model=vgg11", "vgg11 needs images of at least 32x32 pixels; these are 8x8"),
        ("model=cnn model.depth=4", "cnn needs images of at least 16x16 pixels"),
        ("model=cnn_pfl model.depth=4", "cnn_pfl needs images of at least 10x10"),
        ("model=resnet20 model.depth=21", "depth must be 6n+2 (8, 14, 20, 32, ...); got 21"),
        ("model=vgg8 model.depth=9", "model.depth: input should be 8, 11, 13 or 16"),
        ("model.width=0", "model.width: input should be greater than 0"),
        (
            "model=resnet20 model.norm=layer",
            "model.norm: input should be 'none', 'group', 'batch' or",
        ),
    ],
)
def test_models_that_cannot_be_are_refused(overrides: str, message: str) -> None:
    config = compose(overrides.split())
    with pytest.raises(ConfigError) as caught:
        build_model(config.model, ImageShape(1, 8, 8), 10, seed=0)
    assert message in str(caught.value)


def test_initial_weights_are_keyed_by_the_seed_and_leave_the_generator_alone() -> None:
    config = compose()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    nets = [build_model(config.model, ImageShape(1, 8, 8), 10, seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(nets[0][1].weight, nets[1][1].weight)
    assert not torch.equal(nets[0][1].weight, nets[2][1].weight)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere.Strategy", "cannot import nowhere.Strategy"),
        ("fedwsa.scope.weight_scope.Nothing", "fedwsa.scope.weight_scope has no Nothing"),
        ("fedwsa.scope.weight_scope.DEFAULT_FLOOR", "is not a dotted path to a class or function"),
        ("FedAvg", "is not a dotted path to a class or function"),
    ],
)
def test_paths_that_lead_nowhere(target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Component.of(target), "strategy")


def test_a_device_that_is_not_there() -> None:
    assert resolve_device("cpu") == "cpu"
    if torch.cuda.is_available():
        assert resolve_device("auto") == "cuda"
    else:
        assert resolve_device("auto") == "cpu"
        with pytest.raises(ConfigError, match="device: there is no CUDA GPU here"):
            resolve_device("cuda")


def test_options_of_ones_own_stand_beside_ours_in_the_working_directory(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("_target_: mine.net\nbreadth: 3\n")
    (tmp_path / "conf" / "model" / "mlp.yaml").write_text("_target_: mine.other\n")
    found = compose(["model=mine", "model.breadth=4"]).model
    assert (found.target, found.arguments) == ("mine.net", {"breadth": 4})
    assert compose(["model=mlp"]).model.target == "fedwsa.models.mlp.mlp"
    text = help_text()
    assert text.count("model=mine\n") == text.count("model=mlp") == 1
    assert "breadth: 3" in text


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        (["clients.sizes={S: 1.0}"], {"S": 1.0}),
        (["clients.sizes={S: 0.5, L: 0.5}", "clients.sizes={L: 1.0}"], {"L": 1.0}),
        (["clients.sizes=[S,S,L]", "clients.count=3"], ["S", "S", "L"]),
        (["clients.sizes={XL: 1.0}", "sizes.XL={width: 2.0}"], {"XL": 1.0}),
        (["clients.sizes=null"], None),
        ([], {"S": 0.5, "M": 0.3, "L": 0.2}),
    ],
)
def test_who_has_which_size_is_said_all_at_once(words: list[str], sizes: object) -> None:
    """Hydra would merge the mapping into that of the experiment."""
    config = compose(["experiment=sizes", *words])
    assert config.clients.sizes == sizes
