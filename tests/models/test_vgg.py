"""VGG networks: how they start, and that they learn without norms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, relu

from fedwsa import seeding
from fedwsa.config.component import Component
from fedwsa.data.examples import Examples
from fedwsa.data.sources import digits
from fedwsa.models import build_model
from fedwsa.models.inputs import ImageShape

IMAGE = ImageShape(3, 32, 32)


def vgg(image: ImageShape = IMAGE, **arguments: object) -> nn.Module:
    made = {"_target_": "fedwsa.models.vgg.vgg", "width": 1.0, "depth": 8, "norm": "none"}
    return build_model(Component(**{**made, **arguments}), image, 10, seed=0)


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize(("depth", "norm"), [(8, "none"), (11, "none"), (11, "batch")])
def test_convolutions_start_with_variance_two_over_fan_out(depth: int, norm: str) -> None:
    """A 3x3 convolution of c channels has fan_out 9·c. The sample σ of n normal numbers is off by
    σ/√(2n): five of these are allowed, by their mean σ/√n as well."""
    model = vgg(depth=depth, norm=norm)
    for layer in convolutions(model):
        std, n = math.sqrt(2 / (9 * layer.out_channels)), layer.weight.numel()
        assert layer.weight.std().item() == pytest.approx(std, abs=5 * std / math.sqrt(2 * n))
        assert abs(layer.weight.mean().item()) < 5 * std / math.sqrt(n)
        # normal, not uniform: the largest of n normal numbers is far beyond √3·σ
        assert layer.weight.abs().max() > 3 * std
        assert (layer.bias is None) == (norm != "none")
        assert layer.bias is None or not layer.bias.any()


def test_the_classifier_is_one_linear_layer_without_biases_on_512_features() -> None:
    for image in (IMAGE, ImageShape(1, 64, 64)):
        for depth in (8, 11, 16):
            linear = [m for m in vgg(image, depth=depth).modules() if isinstance(m, nn.Linear)]
            assert [(m.in_features, m.out_features, m.bias) for m in linear] == [(512, 10, None)]


def through(layers: list[nn.Conv2d], x: Tensor) -> float:
    """Mean square of what comes out of convolutions with ReLU between them, by that of x."""
    before = x.square().mean()
    with torch.no_grad():
        for i, layer in enumerate(layers):
            x = layer(relu(x) if i else x)
    return float(x.square().mean() / before)


def test_activations_keep_their_size_through_the_depth_where_those_of_torchs_start_die() -> None:
    """With Var(w) = 2/fan_out a layer makes v' = fan_in·2/fan_out·E[relu²] = (c/c')·v, for ReLU
    halves a mean square; the first, without a ReLU before it, makes twice that. Over all layers
    the channels cancel: 2·3/512, whatever the depth. (The image is circular: zeros at its borders
    would take a part away.)

    torch's own start has Var(w) = 1/(3·fan_in): 1/6 at each layer, 1/3 at the first, 2·6⁻¹³ in 13.
    """
    layers = convolutions(vgg(depth=16))
    assert len(layers) == 13
    torch.manual_seed(0)
    x = torch.randn(8, 3, 8, 8)
    for layer in layers:
        layer.padding_mode = "circular"
        layer._reversed_padding_repeated_twice = [1, 1, 1, 1]
    expected = 2 * 3 / 512
    assert expected / 2 < through(layers, x) < 2 * expected
    for layer in layers:
        layer.reset_parameters()
        nn.init.zeros_(layer.bias)
    assert through(layers, x) < 1e-6


def test_a_vgg8_without_norms_learns_at_once() -> None:
    """Digits enlarged to 32x32, six epochs at the rate 0.03: chance is a tenth."""

    def enlarged(examples: Examples) -> Tensor:
        return (interpolate(examples.inputs.float(), (32, 32), mode="bilinear") - 78) / 96

    data = digits().decode()
    inputs, labels = enlarged(data.train), data.train.labels
    model = vgg(ImageShape(1, 32, 32), width=0.125)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-5)
    random = seeding.generator(0, "order")
    for _ in range(6):
        for batch in torch.randperm(len(inputs), generator=random).split(64):
            optimizer.zero_grad()
            cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        hits = model.eval()(enlarged(data.test)).argmax(1) == data.test.labels
    assert hits.float().mean() > 0.6
