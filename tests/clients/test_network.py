"""Which tensors of a stranger's network travel, are saved, and are the same on both sides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from clients.network import Network, network_for
from clients.optimisers import SingleOptimiser
from clients.training import _Stepped
from experiments.commands.simulate import simulate
from fedwsa.config.component import Component, ConfigError
from fedwsa.config.places import options
from fedwsa.data.evaluation import evaluate
from fedwsa.data.federated import open_federated
from fedwsa.merge.average import average
from fedwsa.models import build_model, exchange, state
from fedwsa.models.attributes import copied
from fedwsa.models.files import load_network
from fedwsa.models.inputs import ImageShape
from fedwsa.remembered import enter
from fedwsa.schema.compose import compose
from fedwsa.schema.conditions import Conditions
from fedwsa.wire import messages
from fedwsa.wire.names import STAYING
from server.sizes import SizedModels
from tests.given.odd_models import everything
from tests.given.shapes import an_example_for, small_option

IMAGE, CLASSES = ImageShape(1, 4, 4), 3
ODD = Component.of("tests.given.odd_models.everything")


def outputs(model: nn.Module) -> Tensor:
    x = torch.randn(5, *IMAGE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(x)


def client(seed: int, tensors: dict[str, Tensor]) -> Network:
    network = network_for(ODD, IMAGE, CLASSES, "cpu", tensors, seed)
    network.load(tensors)
    return network


def test_server_and_clients_of_a_seed_have_one_network() -> None:
    server = build_model(ODD, IMAGE, CLASSES, seed=7)
    sent = exchange.travelling_state(server)
    assert "first.weight" in sent
    assert not {"second.weight", "mask", "order", "shift", "norm.num_batches_tracked"} & set(sent)
    assert torch.equal(outputs(client(7, sent).model), outputs(server))
    assert not torch.allclose(outputs(client(8, sent).model), outputs(server))


def test_tied_weights_stay_tied_and_a_reply_keeps_what_was_trained() -> None:
    sent = exchange.travelling_state(build_model(ODD, IMAGE, CLASSES, seed=7))
    network = client(7, sent)
    assert network.model.second.weight is network.model.first.weight
    assert not network.model.body.weight.requires_grad
    with torch.no_grad():
        network.model.second.weight.fill_(2.0)
        network.model.norm.num_batches_tracked.fill_(9)
    reply = network.state()
    network.load(sent)  # the next client
    assert (reply["first.weight"] == 2.0).all()
    assert torch.equal(network.model.second.weight, sent["first.weight"])
    assert network.model.norm.num_batches_tracked == 0


def test_a_client_that_built_another_network_says_so() -> None:
    models = SizedModels.of(compose([f"model._target_={ODD.target}", "~model.width",
                                     "~model.depth", "seed=7"]), IMAGE, CLASSES)  # fmt: skip
    content = {"config": {STAYING: models.marks["model"]}}
    sent = exchange.travelling_state(models.models["model"])
    client(7, sent).require_built_alike(content)
    with pytest.raises(ConfigError, match=r"^model: (mask|order|shift), which does not travel"):
        client(8, sent).require_built_alike(content)


def masked(shape: object, classes: int, *, path: str) -> nn.Module:
    """A builder that reads a file."""
    return Holding(torch.tensor([float(Path(path).read_text())]))


def test_in_another_run_a_process_reads_anew_what_a_builder_reads(tmp_path: Path) -> None:
    (file := tmp_path / "mask").write_text("1")
    known = Component.of("tests.clients.test_network.masked", path=str(file))

    def extra(run: int) -> float:
        enter(run)
        return network_for(known, IMAGE, CLASSES, "cpu", {}, 0).model.extra.item()

    assert extra(1) == 1.0
    file.write_text("2")
    assert extra(1) == 1.0  # a run has one network from its first round to its last
    assert extra(2) == 2.0


def test_marks_tell_a_single_bit_and_forgive_rounding() -> None:
    mask = torch.rand(1000, 1000, generator=torch.Generator().manual_seed(0)) < 0.5
    other = mask.clone()
    other[500, 500] = ~other[500, 500]
    assert state.unlike(state.marks({"mask": mask}), {"mask": mask}) is None
    assert state.unlike(state.marks({"mask": mask}), {"mask": other}) == "mask"
    table = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert state.unlike(state.marks({"t": table}), {"t": table * (1 + 1e-7)}) is None


class Holding(nn.Linear):
    """A layer with one more tensor."""

    def __init__(self, tensor: object, kind: str = "buffer") -> None:
        super().__init__(16, 3)
        if kind == "buffer":
            self.register_buffer("extra", tensor)
        elif kind == "parameter":
            self.extra = nn.Parameter(tensor, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))


class Saying(nn.Linear):
    def get_extra_state(self) -> object:
        return {"not": "a tensor"}


class Hooked(nn.Module):
    """Two layers, whose state dict is what a hook leaves of it."""

    def __init__(self, hook: Callable[[dict[str, Tensor]], None], frozen: bool = False) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(16, 4).requires_grad_(not frozen), nn.Linear(4, 3)
        self.register_state_dict_post_hook(lambda module, saved, prefix, meta: hook(saved))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)))


class Attributed(nn.Linear):
    """A layer that holds more in a plain attribute."""

    def __init__(self, held: object) -> None:
        super().__init__(16, 3)
        self.held = held

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))


def head_alone(saved: dict[str, Tensor]) -> None:
    for name in [name for name in saved if name.startswith("body.")]:
        del saved[name]


def renaming(saved: dict[str, Tensor]) -> None:
    for name in list(saved):
        saved[f"net.{name}"] = saved.pop(name)


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (Hooked(head_alone), "body.weight is trained, and is not in the state dict"),
        (Hooked(renaming), "body.weight is trained, and is not in the state dict"),
        (Attributed(torch.zeros(2)), "held is a tensor in a plain attribute"),
        (nn.Sequential(Attributed({"a": [torch.ones(2)]})), "0.held.a.0 is a tensor in a plain"),
        (Attributed([nn.Parameter(torch.ones(2))]), "held.0 is a tensor in a plain attribute"),
        (Holding(torch.zeros(2, dtype=torch.complex64)), "extra is complex64"),
        (Holding(torch.zeros(2, dtype=torch.complex64), "parameter"), "extra is complex64"),
        (Holding(torch.eye(2).to_sparse()), "extra is sparse"),
        (Holding(torch.zeros(2).to(torch.float8_e4m3fn)), "extra is float8_e4m3fn"),
        (Saying(16, 3), "its state has _extra_state, a dict"),
        (nn.LazyLinear(3), "weight has no shape yet"),
        (nn.Flatten(), "it has no parameters to train"),
    ],
)
def test_what_can_neither_travel_nor_be_built_alike_is_refused(model: nn.Module, what: str) -> None:
    with pytest.raises(ConfigError, match=f"^sizes.S: {what}"):
        state.require_shareable(model, "sizes.S")


def test_what_can_is_not() -> None:
    state.require_shareable(everything(IMAGE, CLASSES), "model")
    state.require_shareable(Holding(torch.ones(2, dtype=torch.int8), "parameter"), "model")
    for held in ([], {"sizes": (1, 2)}, torch.float32, torch.Size([2]), torch.device("cpu")):
        state.require_shareable(Attributed(held), "model")
    adapter = Hooked(head_alone, frozen=True)
    state.require_shareable(adapter, "model")
    assert set(state.travelling(adapter)) == {"head.weight", "head.bias"}
    assert set(state.staying(adapter)) == {"body.weight", "body.bias"}


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.LSTM(4, 4, 2),
        lambda: nn.Transformer(4, 2, 1, 1, 4),
        lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
        lambda: parametrizations.spectral_norm(nn.Conv2d(2, 2, 3)),
        lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
        lambda: nn.utils.weight_norm(nn.Linear(4, 4)),
        lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is deprecated in favor of")
def test_layers_as_torch_makes_them_are_shared_and_copied(build: Callable[[], nn.Module]) -> None:
    layer = build()
    state.require_shareable(layer, "model")
    there, twin = layer.state_dict(), copied(layer).state_dict()
    assert all(torch.equal(tensor, there[name]) for name, tensor in twin.items())
    assert all(tensor.data_ptr() != there[name].data_ptr() for name, tensor in twin.items())


@pytest.mark.parametrize("name", options("model"))
def test_networks_of_ours_are_shareable(name: str) -> None:
    small = small_option(name)
    model = build_model(small, an_example_for(small), 10, 0)
    state.require_shareable(model, "model")
    assert dict(model.named_parameters()).keys() <= state.travelling(model).keys()


_loose = np.random.default_rng(0)


def unrepeatable(image: tuple[int, int, int], classes: int) -> nn.Module:
    return Holding(torch.from_numpy(_loose.random(8) < 0.5))


def test_a_builder_that_draws_from_a_generator_of_its_own_is_refused() -> None:
    words = [f"model._target_={__name__}.unrepeatable", "~model.width", "~model.depth"]
    with pytest.raises(ConfigError, match=r"^model: extra does not travel, and is another each"):
        SizedModels.of(compose(words), IMAGE, 3)


# --- stacks ----------------------------------------------------------------------------------


# --- dtypes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("fused", [True, False])
def test_steps_below_the_spacing_of_half_precision_add_up(kind: torch.dtype, fused: bool) -> None:
    model = nn.Linear(40, 1, bias=False).to(kind)
    nn.init.ones_(model.weight)
    stepped = _Stepped(model)
    optimiser = SingleOptimiser(stepped.groups, Conditions(0.01, 0.0, 4, 1), 0.0, fused)
    for _ in range(200):
        model.weight.grad = torch.full_like(model.weight, 0.01)
        stepped.step(optimiser)
    # 200 steps of 0.0001, each less than half of the spacing of float16 below 1, 0.00049.
    expected = torch.full((1, 40), 1 - 200 * 0.01 * 0.01)
    tolerance = {torch.float16: 5e-4, torch.bfloat16: 4e-3}.get(kind, 1e-5)
    torch.testing.assert_close(model.weight.float(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_each_dtype_travels_and_returns_to_the_bit(kind: torch.dtype) -> None:
    source, other = nn.Linear(3, 2).to(kind), nn.Linear(3, 2).to(kind)
    arrays = messages.to_arrays(exchange.travelling_state(source))
    assert arrays["weight"].dtype == ("float64" if kind == torch.float64 else "float32")
    exchange.load_travelling(other, messages.to_tensors(arrays))
    assert other.weight.dtype == kind
    assert torch.equal(other.weight, source.weight)


# --- files -----------------------------------------------------------------------------------


def test_masks_that_differ_are_not_merged() -> None:
    mask = torch.tensor([True, False])
    one = {"w": torch.ones(2), "mask": mask, "count": torch.tensor(3)}
    two = {"w": torch.zeros(2), "mask": mask.clone(), "count": torch.tensor(4)}
    merged = average([one, two])
    assert torch.equal(merged["mask"], mask)
    assert merged["count"] == 3
    with pytest.raises(ValueError, match=r"^mask: model 2 has other values than model 1, and bool"):
        average([one, {**two, "mask": ~mask}])


def test_a_saved_network_is_the_one_of_the_run(tmp_path: Path) -> None:
    words = [f"model._target_={ODD.target}", "~model.width", "~model.depth", "dataset=digits"]
    fleet = ["partition=iid", "rounds=2", "clients.count=3", "runtime.workers=1", "seed=5"]
    config = compose([*words, *fleet, f"cache_dir={tmp_path / 'cache'}"])
    result = simulate(config, tmp_path / "run")
    assert result["failed"] == 0
    file = tmp_path / "run" / "model.safetensors"
    saved = load_network(file, [ODD.target])
    data = open_federated(config.data_spec)
    score = evaluate(saved.module, data.whole.test, data.whole, "cpu", 256)
    assert score.accuracy == pytest.approx(result["accuracy"])
    assert result["client_accuracy_mean"] > result["accuracy"] - 0.15
    fresh = build_model(ODD, data.whole.shape, data.whole.classes, seed=9)
    fresh.load_state_dict(load_file(file), strict=True)
    assert fresh.second.weight is fresh.first.weight
    assert torch.equal(fresh.mask, saved.module.mask)
    assert torch.equal(fresh.order, saved.module.order)
