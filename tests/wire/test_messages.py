"""Tensors ↔ records."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedwsa.models import exchange
from fedwsa.wire import messages


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def test_integer_buffers_stay_at_home_and_the_rest_returns_to_the_bit() -> None:
    source, other = net(), net()
    source[1].num_batches_tracked += 7
    record = messages.to_arrays(exchange.travelling_state(source))
    assert "1.num_batches_tracked" not in record
    assert "1.running_mean" in record
    exchange.load_travelling(other, messages.to_tensors(record))
    for name, tensor in exchange.travelling_state(other).items():
        assert torch.equal(tensor, source.state_dict()[name])
    assert other[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.bias"), r"missing 0\.bias"),
        (lambda s: s.update(extra=torch.ones(1)), "unknown extra"),
        (lambda s: s.update({"0.bias": torch.ones(3)}), r"0\.bias is \(3,\), not \(2,\)"),
    ],
)
def test_arrays_of_another_model_are_refused(change, message) -> None:
    state = exchange.travelling_state(net())
    change(state)
    with pytest.raises(ValueError, match=message):
        exchange.load_travelling(net(), state)


def test_aggregates_are_cast_back_to_the_model_s_dtypes() -> None:
    reference = {"a": torch.ones(2, dtype=torch.float16), "b": torch.ones(2)}
    wide = messages.to_arrays({k: t.double() for k, t in reference.items()})
    back = messages.to_tensors(messages.cast_like(wide, reference))
    assert {k: t.dtype for k, t in back.items()} == {"a": torch.float16, "b": torch.float32}
