"""Dropout by a hash: as often as it is to, of nobody else's draws, the same on all ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import vmap

from fedwsa.models.dropout import Masks, keep

KEYS = torch.tensor([0, 1, 2**62 + 12345, -7])


def by_numpy(key: int, count: int) -> np.ndarray:
    """The hash in unsigned arithmetic, as MurmurHash3's finaliser is written down."""

    def mix(h: np.ndarray) -> np.ndarray:
        h = h ^ (h >> np.uint32(16))
        h = h * np.uint32(0x85EBCA6B)
        h = h ^ (h >> np.uint32(13))
        h = h * np.uint32(0xC2B2AE35)
        return h ^ (h >> np.uint32(16))

    low, high = key & 2**32 - 1, key >> 32 & 2**32 - 1
    h = mix(np.arange(count, dtype=np.uint32) + np.uint32(low))
    return mix(h ^ np.uint32(high)) & np.uint32(2**31 - 1)


@pytest.mark.parametrize("key", KEYS.tolist())
def test_the_hash_is_that_of_unsigned_numbers(key: int) -> None:
    kept = keep(torch.tensor(key), (40, 25), 0.3)
    assert np.array_equal(kept.numpy().ravel(), by_numpy(key, 1000) >= round(0.3 * 2**31))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_each_element_stays_as_often_as_it_is_to_and_knows_of_no_other(p: float) -> None:
    count = 200_000
    masks = torch.stack([keep(torch.tensor(key), (count,), p) for key in range(5)]).double()
    noise = (p * (1 - p) / count) ** 0.5
    assert (masks.mean(1) - (1 - p)).abs().max() < 5 * noise
    # Of two keys, and of one at two places: products of centred masks have mean zero.
    centred = (masks - (1 - p)) / (p * (1 - p)) ** 0.5
    others = [centred[i] * centred[j] for i in range(5) for j in range(i)]
    others += [centred[:, lag:] * centred[:, :-lag] for lag in (1, 2, 64)]
    assert max(float(each.mean().abs()) for each in others) < 5 * count**-0.5


def test_stacked_it_is_as_alone() -> None:
    stacked = vmap(lambda key: keep(key, (7, 3), 0.5))(KEYS)
    assert torch.equal(stacked, torch.stack([keep(key, (7, 3), 0.5) for key in KEYS]))


class Twice(nn.Module):
    """A layer that is called twice, and one that drops channels."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.channels = nn.Dropout(0.5), nn.Dropout2d(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.drop(x), self.drop(x), self.channels(x)])


def test_layers_calls_steps_and_keys_differ_and_repeat() -> None:
    model, x = Twice(), torch.ones(4, 8, 5, 5)
    seen = []
    with Masks(model) as masks:
        for key, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
            masks.begin(torch.tensor(key), step)
            seen.append(model(x))
    *different, again = seen
    assert torch.equal(different[0], again)
    whole = [masks for out in different for masks in out[:2]] + [different[0][2]]
    assert all(not torch.equal(a, b) for i, a in enumerate(whole) for b in whole[:i])
    assert set(torch.cat(seen).unique().tolist()) == {0.0, 2.0}
    channels = different[0][2].flatten(2)
    assert (channels == channels[..., :1]).all()
    assert len(channels[..., 0].unique()) == 2


def test_padding_at_the_end_of_a_batch_changes_no_other_sample() -> None:
    model = nn.Dropout(0.5)
    with Masks(model) as masks:
        masks.begin(torch.tensor(3), 0)
        alone = model(torch.ones(3, 9))
        masks.begin(torch.tensor(3), 0)
        assert torch.equal(model(torch.ones(5, 9))[:3], alone)


def test_outside_and_in_evaluation_dropout_is_torch_s() -> None:
    model, x = nn.Dropout(0.5), torch.ones(1000)
    with Masks(model):
        model.eval()
        assert model(x) is x
        model.train()
        with pytest.raises(RuntimeError, match="comes before a forward pass"):
            model(x)
    assert "forward" not in vars(model)
    torch.manual_seed(0)
    ours = model(x)
    torch.manual_seed(0)
    assert torch.equal(ours, nn.functional.dropout(x, 0.5))
    assert not Masks(nn.Sequential(nn.Dropout(0.0), nn.Linear(2, 2)))
