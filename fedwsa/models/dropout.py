"""Dropout whose masks follow from who trains, in which step and where: the same alone and stacked.

torch draws them from a generator, whose numbers a client that trains with others, or on another
device, gets in another order. Here a mask is an integer hash of (key, step, layer, call, index of
the element), with the two rounds of mixing of MurmurHash3's finaliser (Appleby 2011, public
domain).
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

_WHOLE = (nn.Dropout,)
_CHANNELS: dict[type[_DropoutNd], int] = {nn.Dropout1d: 3, nn.Dropout2d: 4, nn.Dropout3d: 5}
"""What drops whole channels of an input ``(N, C, …)``, and its dimensions."""

_STEP, _LAYER, _CALL = 0x1E3779B97F4A7C15, 0x632BE59BD9B4E019, 0x5851F42D4C957F2D  # odd
_LOW = 2**32 - 1


def _int32(value: int) -> int:
    """The number with the same 32 bits that an int32 can hold."""
    return (value & _LOW ^ 2**31) - 2**31


_FIRST, _SECOND = _int32(0x85EBCA6B), _int32(0xC2B2AE35)


def _int64(value: int) -> int:
    return (value & 2**64 - 1 ^ 2**63) - 2**63


class Masks:
    """Gives the dropout layers of a model masks that do not depend on a generator, while entered.

    Layers of torch's own classes are meant; what else draws is left alone.

    Parameters
    ----------
    model
        In training, ``masks.begin(key, step)`` comes before each forward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [
            module
            for module in model.modules()
            if isinstance(module, _DropoutNd)
            and type(module) in (*_WHOLE, *_CHANNELS)
            and module.p > 0
        ]
        self._key: Tensor | None = None
        self._calls: list[int] = []

    def __bool__(self) -> bool:
        """Whether the model has such layers."""
        return bool(self._layers)

    def __enter__(self) -> Self:
        for number, layer in enumerate(self._layers):
            layer.forward = _Dropped(self, number, layer)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for layer in self._layers:
            del layer.forward

    def begin(self, key: Tensor, step: int) -> None:
        """A forward pass of a training begins.

        Parameters
        ----------
        key
            int64, a number of whoever trains; in a ``vmap``, of each.
        step
            From 0.
        """
        if self._layers:
            self._key, self._calls = key + _int64(step * _STEP), [0] * len(self._layers)

    def drop(self, x: Tensor, layer: int, p: float, shape: tuple[int, ...]) -> Tensor:
        """An input without some of its elements, the others 1/(1 − p) times as large."""
        if self._key is None:
            raise RuntimeError("Masks.begin() comes before a forward pass")
        call = self._calls[layer]
        self._calls[layer] += 1
        key = self._key + _int64(layer * _LAYER + call * _CALL)
        return x * keep(key, shape, p).to(x.dtype).div_(1.0 - p)


class _Dropped:
    """The forward pass of a dropout layer under :class:`Masks`."""

    def __init__(self, masks: Masks, number: int, layer: _DropoutNd) -> None:
        self.masks, self.number, self.layer = masks, number, layer

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        if not layer.training:
            return x
        dimensions = _CHANNELS.get(type(layer))
        if dimensions is not None and x.dim() != dimensions:
            undropped: Tensor = type(layer).forward(layer, x)
            return undropped
        shape = x.shape if dimensions is None else (*x.shape[:2], *[1] * (x.dim() - 2))
        return self.masks.drop(x, self.number, layer.p, tuple(shape))


def keep(key: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
    """Which elements stay, each with probability 1 − p: bool, of that shape.

    Parameters
    ----------
    key
        int64, a number.
    """
    count = torch.Size(shape).numel()
    index = torch.arange(count, dtype=torch.int32, device=key.device).view(shape)
    low, high = (part.to(torch.int32) for part in (_signed(key & _LOW), key >> 32))
    mixed = _mix(_mix(index + low) ^ high)
    return (mixed & 0x7FFFFFFF) >= round(p * 2**31)


def _signed(low: Tensor) -> Tensor:
    """The lower half of a number as an int32 would have it."""
    return (low ^ 2**31) - 2**31


def _mix(h: Tensor) -> Tensor:
    """MurmurHash3's finaliser; torch's int32 has no logical shift, and wraps."""
    h = (h ^ (h >> 16 & 0xFFFF)) * _FIRST
    h = (h ^ (h >> 13 & 0x7FFFF)) * _SECOND
    return h ^ (h >> 16 & 0xFFFF)
