"""Networks for tables and time series."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedwsa.config.component import ConfigError
from fedwsa.models import build_model, takes
from fedwsa.models.cnn import cnn1d
from fedwsa.models.inputs import ImageShape, SeriesShape
from fedwsa.models.mlp import mlp
from fedwsa.schema.compose import compose


def test_a_convolution_over_time_is_one_over_pictures_of_one_row() -> None:
    """The same network with 1 x 5 kernels, on pictures of height 1."""
    net = cnn1d((2, 32), 4, width=0.25, depth=2)
    layers: list[nn.Module] = []
    for module in net.children():
        if isinstance(module, nn.Conv1d):
            flat = nn.Conv2d(module.in_channels, module.out_channels, (1, 5), padding=(0, 2))
            flat.weight.data, flat.bias = module.weight[:, :, None].detach(), module.bias
            layers.append(flat)
        elif isinstance(module, nn.MaxPool1d):
            layers.append(nn.MaxPool2d((1, 2)))
        else:
            layers.append(module)
    series = torch.randn(3, 2, 32)
    torch.testing.assert_close(nn.Sequential(*layers)(series[:, :, None]), net(series))


def test_a_linear_classifier_of_a_table_is_a_product() -> None:
    net = mlp((6, 1), 3, width=1.0, depth=0)
    rows = torch.randn(5, 6)
    head = net.get_submodule("head")
    assert isinstance(head, nn.Linear)
    torch.testing.assert_close(net(rows[:, :, None]), rows @ head.weight.T + head.bias)


def test_what_the_kinds_are() -> None:
    assert takes(mlp) == {SeriesShape, ImageShape}
    assert takes(cnn1d) == {SeriesShape}
    with pytest.raises(ConfigError, match=r"cnn is for images, .*; take one of cnn1d, mlp$"):
        build_model(compose(["model=cnn"]).model, SeriesShape(4, 1), 3, 0)
    with pytest.raises(ConfigError, match=r"cnn1d needs series of at least 4 times; these have 1"):
        build_model(compose(["model=cnn1d"]).model, SeriesShape(4, 1), 3, 0)
