"""Clients under weight augmentation: the plain weights are trained and travel, runs repeat."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import update_bn

from clients.cohort import why_not
from clients.training import Samples, train, train_augmented
from experiments.commands.simulate import resume, simulate
from fedwsa.algorithms.wsa.client import ScopeAlignment
from fedwsa.config.component import ConfigError
from fedwsa.config.places import options
from fedwsa.models import build_model, exchange
from fedwsa.models.augment import kernels
from fedwsa.models.inputs import ImageShape, TextShape
from fedwsa.schema.compose import compose
from fedwsa.schema.conditions import Conditions
from fedwsa.schema.sections import Local
from fedwsa.scope.weight_scope import WeightScope, add_kl_gradient_
from tests.given.checkpoint import assert_same_run, interrupted
from tests.given.fedwsa import content

pytestmark = pytest.mark.usefixtures("all_cores")

AUGMENTED = ("model=cnn", "local.weight_augmentation=choice")
TINY = ("clients.count=4", "local.epochs=1", "model.width=0.2", "clients.table=true")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def local(**changes: object) -> Local:
    plain = {"epochs": 2, "batch_size": 4, "momentum": 0.0, "weight_decay": 0.0}
    return compose().local.model_copy(update={**plain, **changes})


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def samples(n: int = 9) -> Samples:
    random = torch.Generator().manual_seed(1)
    x, y = torch.randn(n, 1, 6, 6, generator=random), torch.randint(0, 3, (n,), generator=random)
    return Samples(x, y, lambda p: p, random)


def trained(settings: Local, model: nn.Module | None = None, aligned: float = 0.0) -> nn.Module:
    model = model or net()
    objectives = [ScopeAlignment(model, aim(aligned))] if aligned else []
    draws = torch.Generator().manual_seed(2)
    train_augmented(model, samples(), settings, Conditions.usual(settings), objectives, draws)
    return model


def aim(strength: float) -> dict:
    """What FedWSA sends: twice the variances that the network has."""
    scope = WeightScope.measure(net())
    message = content(strength)
    message["config"] = {**message["config"], "wsa-layers": list(scope.names)}
    target = {"mean": scope.mean.tolist(), "variance": (2 * scope.variance).tolist()}
    return {**message, "wsa-target": target}


def test_off_is_training_as_it_is_to_the_bit() -> None:
    settings, plain = local(), net()
    train(plain, samples(), settings, Conditions.usual(settings), [])
    off, on = trained(settings), trained(local(weight_augmentation="translate"))
    for p, q, r in zip(plain.parameters(), off.parameters(), on.parameters(), strict=True):
        assert torch.equal(p, q)
        assert not torch.equal(p, r)


@pytest.mark.parametrize("kind", ["translate", "crop", "choice"])
def test_what_travels_has_the_names_and_shapes_of_the_plain_model(kind: str) -> None:
    before = {k: t.shape for k, t in exchange.travelling_state(net()).items()}
    after = exchange.travelling_state(trained(local(weight_augmentation=kind)))
    assert [(k, t.shape) for k, t in after.items()] == list(before.items())


def test_wsa_adds_its_gradient_to_that_of_the_plain_weight() -> None:
    # One step of gradient descent: the two end η·λ·∇KL(W) apart, wherever the shadows were.
    one = local(epochs=1, batch_size=100, lr=0.1, weight_augmentation="choice")
    without, aligned = trained(one), trained(one, aligned=3.0)
    start = net()
    names = [name for name, p in start.named_parameters() if p.dim() > 1]
    weights = [start.get_parameter(name).detach() for name in names]
    gradients = [torch.zeros_like(w) for w in weights]
    scope = WeightScope.measure(start)
    assert list(scope.names) == names
    target = WeightScope.of(names, scope.mean.tolist(), (2 * scope.variance).tolist())
    config = aim(3.0)["config"]
    add_kl_gradient_(gradients, weights, target, 3.0, reduction=config["wsa-reduction"])
    for name, gradient in zip(names, gradients, strict=True):
        apart = without.get_parameter(name) - aligned.get_parameter(name)
        torch.testing.assert_close(apart.detach(), 0.1 * gradient, rtol=1e-3, atol=1e-7)
        assert gradient.abs().max() > 1e-4


def test_the_statistics_that_travel_are_those_of_the_plain_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    settings = local(weight_augmentation="translate", batch_size=9)
    trained(settings, model)
    travelling = {k: t.clone() for k, t in exchange.travelling_state(model).items()}
    update_bn([samples().inputs], model)  # one batch of all, whatever its order
    for name, tensor in exchange.travelling_state(model).items():
        torch.testing.assert_close(travelling[name], tensor)


def test_a_cohort_cannot_draw_for_each_client_and_says_so() -> None:
    assert why_not(local()) is None
    said = why_not(local(weight_augmentation="crop"))
    assert said == "local.weight_augmentation is set"


def run(folder: Path, cache: str, *overrides: str) -> Path:
    own = [*TINY, "rounds=2", f"cache_dir={cache}", *AUGMENTED, *overrides]
    simulate(compose(own), folder)
    return folder


def test_a_run_repeats_to_the_bit_with_one_worker_and_two(cache: str, tmp_path: Path) -> None:
    # A median does not depend on the order of its terms, as the rounding of an average does.
    same = ("strategy=fedmedian",)
    one = run(tmp_path / "one", cache, *same, "runtime.workers=1")
    assert_same_run(one, run(tmp_path / "two", cache, *same, "runtime.workers=2"))
    with pytest.raises(ConfigError, match=r"cohort=2: .* local.weight_augmentation is set$"):
        run(tmp_path / "cohorts", cache, *same, "runtime.cohort=2")
    # Else it would say nothing: other transforms are another run.
    other = run(tmp_path / "other", cache, *same, "local.weight_augmentation=translate")
    assert (other / "clients.csv").read_bytes() != (one / "clients.csv").read_bytes()


@pytest.mark.parametrize("more", [(), ("wsa=on", "strategy=scaffold")])
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(
    more: tuple[str, ...], cache: str, tmp_path: Path
) -> None:
    config = interrupted(tmp_path / "stopped", cache, 2, 3, *AUGMENTED, *more)
    whole = config.model_copy(update={"checkpoint": compose().checkpoint})
    simulate(whole, tmp_path / "whole")
    resume(tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=cnn_pfl", "strategy=moon"),
        ("dataset.augment=crop_flip", "strategy=scaffold", "local.clip_norm=1"),
        ("model=resnet20", "model.norm=batch", "strategy=fedbn", "wsa=on"),
        ("clients.sizes={S: 0.5, L: 0.5}", "strategy=heterofl", "local.precision=bf16"),
        ("strategy=oneshot", "merge=fisher", "rounds=1"),
    ],
)
def test_it_goes_with_every_network_of_kernels(
    overrides: tuple[str, ...], cache: str, tmp_path: Path
) -> None:
    folder = run(tmp_path / "run", cache, "subset.train=200", "model.width=0.1", *overrides)
    if (folder / "model.safetensors").exists():  # FedBN leaves each client one of its own
        config = compose([*AUGMENTED, *overrides, "model.width=0.1"])
        component = config.model_of(None)
        plain = exchange.travelling_state(build_model(component, ImageShape(1, 8, 8), 10, 0))
        found = load_file(folder / "model.safetensors")
        assert {k for k, t in found.items() if t.is_floating_point()} == set(plain)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("model=mlp",), "mlp: the model has no 2-D convolution with a kernel of 3x3 or larger"),
        (("model=vit", "model.width=0.25"), "vit: the model has no 2-D convolution"),
        (("strategy=wave",), "FedWave's clients train the templates"),
    ],
)
def test_what_has_no_kernels_of_its_own_is_refused_before_the_first_round(
    overrides: tuple[str, ...], said: str, cache: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"^local.weight_augmentation: {said}") as refused:
        run(tmp_path / "run", cache, *overrides)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_the_kernels_of_our_networks() -> None:
    # Of resnet20 all but the two 1x1 shortcuts.
    for name, count in (("vgg8", 5), ("vgg11", 8), ("resnet20", 19), ("cnn", 2), ("cnn_pfl", 2)):
        model = build_model(options("model")[name], ImageShape(3, 32, 32), 10, 0)
        assert len(kernels(model)) == count, name


@pytest.mark.parametrize("model", ["char_lstm", "char_transformer"])
def test_text_models_have_no_kernels(model: str) -> None:
    with pytest.raises(ValueError, match="no 2-D convolution"):
        kernels(build_model(options("model")[model], TextShape(8), 20, 0))
