"""Networks of timm and torchvision, fitted to the data and to a file of weights."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from experiments.commands.simulate import simulate
from fedwsa.config.component import Component, ConfigError
from fedwsa.models import build_model, library
from fedwsa.models.inputs import ImageShape
from fedwsa.schema.compose import compose

COLOUR, GREY = ImageShape(3, 32, 32), ImageShape(1, 28, 28)


def component(of: str, **keys: object) -> Component:
    usual = {"name": "resnet18", "weights": None, "norm": "kept", "freeze": None}
    if of == "timm":
        usual |= {"width": 1.0, "depth": None}
    return Component.model_validate({"_target_": f"fedwsa.models.library.{of}", **usual, **keys})


def built(of: str, shape: tuple[int, int, int] = COLOUR, classes: int = 7, **keys: object):
    return build_model(component(of, **keys), shape, classes, 0)


@pytest.mark.parametrize("shape", [COLOUR, GREY])
@pytest.mark.parametrize(
    ("of", "name"),
    [
        ("timm", "resnet18"),
        ("timm", "vit_tiny_patch16_224"),
        ("torchvision", "resnet18"),
        ("torchvision", "squeezenet1_1"),
    ],
)
def test_the_head_fits_the_classes_and_the_first_layer_the_channels(of, name, shape) -> None:
    if name.startswith("vit"):
        shape = ImageShape(shape[0], 32, 32)
    if name.startswith("squeeze") and shape == GREY:
        shape = ImageShape(1, 64, 64)
    model = built(of, shape, name=name).eval()
    assert model(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("of", ["timm", "torchvision"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_of_weights_gives_all_but_a_head_of_other_classes(of, suffix, tmp_path) -> None:
    there = built(of, classes=5)
    file = tmp_path / f"there{suffix}"
    state = there.state_dict()
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    same, other = (built(of, classes=n, weights=str(file)).state_dict() for n in (5, 7))
    assert all(torch.equal(same[name], tensor) for name, tensor in state.items())
    unlike = [name for name, tensor in state.items() if not torch.equal(other[name], tensor)]
    assert unlike == ["fc.weight", "fc.bias"]
    grey = built(of, GREY, classes=5, weights=str(file)).state_dict()
    torch.testing.assert_close(grey["conv1.weight"], state["conv1.weight"].sum(1, keepdim=True))


def test_group_norms_take_the_place_of_batch_norms_and_one_line_says_so(
    caplog, monkeypatch
) -> None:
    library._warn_of_norms.cache_clear()
    monkeypatch.setattr(logging.getLogger("fedwsa"), "propagate", True)
    with caplog.at_level(logging.WARNING, "fedwsa"):
        kept, again = built("torchvision"), built("torchvision")
    # A record may reach the handler by both loggers.
    said = {id(r) for r in caplog.records if "model.norm=group replaces it" in r.getMessage()}
    assert len(said) == 1
    assert sum(isinstance(m, nn.BatchNorm2d) for m in again.modules()) == 20
    group = built("torchvision", norm="group")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in group.modules())
    assert sum(isinstance(m, nn.GroupNorm) for m in group.modules()) == 20
    assert torch.equal(group.get_parameter("bn1.weight"), kept.get_parameter("bn1.weight"))


def test_what_a_pattern_finds_is_not_trained() -> None:
    model = built("timm", freeze=r"^(?!fc)")
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "resnet81"}, r"timm has no resnet81; is it resnet\w+ or"),
        ({"weights": "none.safetensors"}, r"weights: there is no file none\.safetensors"),
        ({"weights": "text.pt"}, r"weights: .*text\.pt holds code or objects"),
        ({"weights": "other.safetensors"}, r"weights: .* has no conv1\.weight: it is of another"),
        (
            {"weights": "narrow.safetensors"},
            r"weights: layer1\.0\.conv1\.weight of .* is \(3, 3\), n",
        ),
        ({"weights": "more.safetensors"}, r"weights: .* has extra, which the network lacks"),
        ({"freeze": "nothing"}, "freeze: 'nothing' is found in no name of a parameter"),
        ({"freeze": "("}, r"freeze: '\(' is no regular expression"),
        ({"freeze": "."}, r"freeze: '\.' leaves nothing to train"),
        ({"norm": "batch"}, "model.norm: input should be 'kept' or 'group'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    keys, message, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.pt").write_text("no weights")
    state = built("timm").state_dict()
    save_file({"w": torch.zeros(1)}, "other.safetensors")
    save_file(state | {"layer1.0.conv1.weight": torch.zeros(3, 3)}, "narrow.safetensors")
    save_file(state | {"extra": torch.zeros(1)}, "more.safetensors")
    with pytest.raises(ConfigError, match=message) as caught:
        built("timm", **keys)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("of", ["timm", "torchvision"])
def test_pretrained_weights_that_cannot_be_had_are_named(
    of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    for proxy in ("http_proxy", "https_proxy"):  # nobody is there
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConfigError, match=rf"{of} has no pretrained resnet18 .* cannot fetch \S+res"
    ):
        built(of, weights="DEFAULT")


def test_one_trains_with_a_frozen_body(tmp_path: Path) -> None:
    words = ["dataset._target_=tests.given.small_images.small_images", "partition=iid"]
    words += ["model=timm", "model.norm=group", "model.freeze='^(conv1|layer)'"]
    fleet = ["rounds=1", "clients.count=2", "local.epochs=1", "runtime.workers=1"]
    result = simulate(compose([*words, *fleet, f"cache_dir={tmp_path}/c"]), tmp_path / "run")
    assert result["failed"] == 0
