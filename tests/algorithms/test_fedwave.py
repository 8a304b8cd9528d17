"""Federated WAVE: shared templates, scalers of each size."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from clients.network import network_for
from clients.optimisers import SingleOptimiser
from clients.training import _Stepped
from experiments.commands.simulate import simulate
from fedwsa.algorithms.sizes.fedwave import FedWave
from fedwsa.config.component import Component, ConfigError
from fedwsa.learngene import wave
from fedwsa.models import build_model
from fedwsa.models.architecture import architecture_of
from fedwsa.schema.compose import compose
from fedwsa.schema.conditions import Conditions
from fedwsa.wire import messages
from server.federation import Federation
from tests.given.architecture import CLASSES, IMAGE, component, network

SIZES = {"S": {"width": 0.25, "depth": 2}, "L": {"width": 0.5, "depth": 4}}


def models() -> dict[str, nn.Module]:
    return {size: network("vit.vit", **arguments) for size, arguments in SIZES.items()}


def strategy(count: int = 4) -> FedWave:
    made = models()
    known = architecture_of(component("vit.vit"))
    shapes = {s: {k: tuple(t.shape) for k, t in m.state_dict().items()} for s, m in made.items()}
    return FedWave(shapes, architecture=known, axes=known.axes(made["L"]), count=count)


def states(made: dict[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    return {size: model.state_dict() for size, model in made.items()}


def test_weights_that_were_made_from_templates_are_met_exactly() -> None:
    """Two networks planted from the same four templates: join, then plain, gives both back."""
    planted = models()
    known = architecture_of(component("vit.vit"))
    shapes = {"attn.qkv": (48, 48), "attn.proj": (48, 48), "mlp.fc1": (192, 48)}
    shapes["mlp.fc2"] = (48, 192)
    draw = torch.Generator().manual_seed(0)
    templates = wave.random_templates(planted["L"], known, shapes, 4, draw)
    for model in planted.values():
        wave.attach(model, known, {k: t.detach() for k, t in templates.items()})
        wave.random_scalers(model, dict.fromkeys(wave.scalers_of(model), 0.01), draw)
        wave.materialise(model)
    aggregator = strategy()
    joined = aggregator.join(states(planted))
    for size, model in planted.items():
        back = messages.to_tensors(aggregator.plain(joined, size, 1))
        assert back.keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(back[name], tensor, rtol=1e-3, atol=1e-5)


def test_other_weights_are_met_with_the_variance_of_each_layer() -> None:
    aggregator, made = strategy(), models()
    joined = aggregator.join(states(made))
    known = architecture_of(component("vit.vit"))
    for size, model in made.items():
        back = messages.to_tensors(aggregator.plain(joined, size, 1))
        for name, tensor in model.state_dict().items():
            if known.group(name):
                ratio = back[name].var(correction=0) / tensor.var(correction=0)
                assert ratio.item() == pytest.approx(1, rel=1e-4)
            else:
                assert torch.equal(back[name], tensor)


def test_the_templates_of_a_learngene_are_taken_as_they_are() -> None:
    """Of another size and number than the strategy would choose: 24x24 instead of 48x48."""
    made, known = models(), architecture_of(component("vit.vit"))
    draw = torch.Generator().manual_seed(0)
    shapes = dict.fromkeys(known.groups, (24, 24))
    templates = wave.random_templates(made["L"], known, shapes, 7, draw)
    given = {k: t.detach() for k, t in templates.items()}
    for model in made.values():
        wave.attach(model, known, given)
        wave.random_scalers(model, dict.fromkeys(wave.scalers_of(model), 0.01), draw)
        wave.materialise(model)
    aggregator = strategy()
    aggregator.take_templates(given)
    joined = aggregator.join(states(made))
    assert torch.equal(messages.to_tensors(joined)["templates/mlp.fc1"], given["mlp.fc1"])
    for size, model in made.items():
        back = messages.to_tensors(aggregator.plain(joined, size, 1))
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(back[name], tensor, rtol=1e-3, atol=1e-5)
    before = aggregator.shapes
    with pytest.raises(ValueError, match="not made of whole templates of 7x7"):
        aggregator.take_templates(dict.fromkeys(known.groups, torch.randn(2, 7, 7)))
    assert aggregator.shapes is before


def test_a_client_is_sent_only_the_templates_and_what_its_size_has() -> None:
    aggregator = strategy()
    joined = aggregator.join(states(models()))
    sent = {s: messages.to_tensors(aggregator.split(joined, s, 1)) for s in SIZES}
    assert not any("blocks.2" in name for name in sent["S"])
    shared = [name for name in sent["S"] if name.startswith(wave.TEMPLATES)]
    assert len(shared) == 4
    assert all(torch.equal(sent["S"][n], sent["L"][n]) for n in shared)
    # In the global arrays a template lies once, everything else for each size.
    assert sum(name in joined for name in shared) == 4
    assert len(joined) == sum(len(s) for s in sent.values()) - 4


def test_a_client_s_network_is_the_size_s_and_its_templates_stay_shared() -> None:
    aggregator = strategy()
    joined = aggregator.join(states(models()))
    for size, arguments in SIZES.items():
        sent = messages.to_tensors(aggregator.split(joined, size, 1))
        kind = component("vit.vit", **arguments)
        net = network_for(kind, IMAGE, CLASSES, "cpu", sent, seed=0)
        for _ in range(2):  # of one client after the other
            net.load({k: t.clone() for k, t in sent.items()})
            plain = build_model(kind, IMAGE, CLASSES, seed=1)
            plain.load_state_dict(messages.to_tensors(aggregator.plain(joined, size, 1)))
            x = torch.randn(2, *IMAGE)
            torch.testing.assert_close(net.model.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)
            count = sum(t.numel() for t in sent.values())
            assert sum(p.numel() for p in net.model.parameters()) == count
            weights = net.weights()
            assert isinstance(weights, dict)
            assert {id(p) for p in net.model.parameters()} == {id(t) for t in weights.values()}
            with torch.no_grad():
                for p in net.model.parameters():
                    p.add_(1.0)
        assert net.state().keys() == sent.keys()
    with pytest.raises(ValueError, match="the arrays do not fit the model"):
        net.load({k: t for k, t in sent.items() if k != "norm.weight"})


def test_what_no_templates_can_make_is_refused() -> None:
    made = models()
    known = architecture_of(component("vit.vit"))
    shapes = {s: {k: tuple(t.shape) for k, t in m.state_dict().items()} for s, m in made.items()}
    with pytest.raises(ValueError, match="count must be at least 1"):
        FedWave(shapes, architecture=known, count=0)
    shallow = {"S": {"hidden0.weight": (5, 4)}}
    mlp = architecture_of(Component.of("fedwsa.models.mlp.mlp"))
    with pytest.raises(ValueError, match="no weight that templates could make"):
        FedWave(shallow, architecture=mlp)


RUN = [
    "rounds=2",
    "clients.count=6",
    "local.epochs=1",
    "partition=iid",
    "strategy=wave",
    "clients.sizes={S: 0.5, M: 0.3, L: 0.2}",
    "sizes.L.depth=3",
]
BRIEF = ["init=wave", *(f"pretraining.{part}.steps=30" for part in ("teach", "learn", "fit"))]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"cache_dir={tmp_path_factory.mktemp('cache')}"


def test_sizes_of_any_width_and_depth_learn_together_from_templates(
    cache: str, tmp_path: Path
) -> None:
    result = simulate(compose([*RUN, *BRIEF, "wsa=on", cache]), tmp_path / "run")
    assert result["failed"] == 0
    assert set(result["sizes"]) == {"S", "M", "L"}
    assert min(result["sizes"].values()) > 0.2
    small = load_file(tmp_path / "run" / "model-S.safetensors")
    assert small["hidden1.weight"].shape == (50, 50)
    assert load_file(tmp_path / "run" / "model-L.safetensors")["hidden2.weight"].shape == (200, 200)
    gene = load_file(tmp_path / "run" / "learngene.safetensors")
    assert gene["templates/hidden"].shape == (16, 50, 50)
    again = simulate(compose([*RUN, *BRIEF, "wsa=on", cache]), tmp_path / "again")
    assert again["sizes"] == result["sizes"]


def test_a_run_begins_with_what_the_learngene_makes(cache: str, tmp_path: Path) -> None:
    """The strategy's templates make the learngene's networks, to rounding."""
    federation = Federation(compose([*RUN, *BRIEF, cache]), tmp_path)
    inner = federation.strategy
    assert isinstance(inner, FedWave)
    made = {s: m.state_dict() for s, m in federation.sizes.models.items()}
    joined = inner.join(made)
    for size, state in made.items():
        back = messages.to_tensors(inner.plain(joined, size, 1))
        for name in state:
            torch.testing.assert_close(back[name], state[name].cpu(), rtol=1e-3, atol=1e-4)


def test_wave_of_one_size_is_a_federation_too(cache: str, tmp_path: Path) -> None:
    words = [*RUN[:5], "model.depth=3", "model.width=0.25", "strategy.args.count=4", cache]
    assert simulate(compose(words), tmp_path / "run")["failed"] == 0


def test_a_learngene_of_other_images_is_warned_of(
    cache: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("fedwsa"), "propagate", True)
    [gene] = Federation(compose([*RUN, *BRIEF, cache]), tmp_path).learned.values()
    gene.save(tmp_path / "w.safetensors")
    words = [*RUN, *BRIEF, cache, f"init.file={tmp_path / 'w.safetensors'}"]
    Federation(compose(words), tmp_path)
    assert "learned from other data" not in caplog.text
    Federation(compose([*words, "seed=1"]), tmp_path)
    assert "init.file was learned from other data" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["init=wave"], "init.public=0: there are no examples to learn from"),
        (["init=wave", "init.public=0.1", "init.file=none"], "there is no learngene file none"),
        (["init=sws", "init.public=0.1", "model=cnn"], "one sequence of equal blocks"),
        (["init=standard", "init.file=none"], "init.file: init=standard takes no file"),
    ],
)
def test_what_cannot_be_initialised_is_refused(
    cache: str, tmp_path: Path, overrides: list[str], message: str
) -> None:
    config = compose(["init.public=0", *overrides, cache])
    with pytest.raises(ConfigError, match=message):
        Federation(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_templates_and_scalers_do_not_decay_at_a_client(optimiser: str) -> None:
    """Without a gradient a step is the decay alone: w (1 − lr·decay) of the shell alone."""
    aggregator = strategy()
    joined = aggregator.join(states(models()))
    sent = messages.to_tensors(aggregator.split(joined, "S", 1))
    net = network_for(component("vit.vit", **SIZES["S"]), IMAGE, CLASSES, "cpu", sent, seed=0)
    net.load({k: t.clone() for k, t in sent.items()})
    conditions = Conditions(0.1, 0.5, batch_size=1, epochs=1, optimiser=optimiser)
    optimiser_ = SingleOptimiser(_Stepped(net.model).groups, conditions, 0.0, fused=True)
    for parameter in net.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser_.step()
    for name, tensor in net.state().items():
        own = name.startswith((wave.TEMPLATES, wave.SCALERS))
        expected = sent[name] if own else sent[name] * (1 - 0.1 * 0.5)
        torch.testing.assert_close(tensor, expected, msg=name)
