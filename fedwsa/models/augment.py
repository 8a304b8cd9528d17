"""Weight augmentation (WAS): train under random transforms of the kernels, deploy the plain ones.

The plain weight W of a convolution is what is stored and updated. At each training forward pass a
*shadow weight* α·T(W) stands in its place, where T is a random transform of the kernel plane, one
draw for all filters of a layer, and α a scale that the layer learns. The gradient of the loss goes
through T to W.

T is linear in the ``height·width`` entries of a plane, so that a draw is one small matrix M: T(W)
is each plane w ↦ M·w, and what comes back is v ↦ Mᵀ·v. A translation shifts by whole entries, with
zeros behind; a crop takes a box of whole entries and resizes it to the kernel.

Source: Weight Augmentation, arXiv 2405.19590. Ours: a box that would be wider or higher than the
kernel is as wide or high as it; boxes are resized bilinearly, as images mostly are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import interpolate
from torch.nn.utils.parametrize import is_parametrized

Transform = Literal["translate", "crop", "choice"]
"""``choice``: one of the two at each draw."""

TRANSLATION = 0.3
"""Longest shift along a side, in parts of it."""

SCALE = (0.8, 1.0)
"""Area of a box, in parts of the kernel's."""

RATIO = (3 / 4, 4 / 3)
"""Width of a box by its height, drawn on a logarithmic scale, as in torchvision."""

SMALLEST = 3
"""Shortest side of a kernel that has shadow weights."""

_NUMBERS = 5
"""That a draw takes, whatever the transform."""


def translate(height: int, width: int, numbers: Sequence[float]) -> Tensor:
    """The matrix of a shift by up to 0.3 of the height and width, rounded to whole entries.

    Parameters
    ----------
    height, width
        Of the kernel.
    numbers
        From [0, 1): how far down and how far to the right, 0.5 not at all.

    Returns
    -------
    Tensor
        Shape ``(height·width, height·width)``.
    """
    down, right = (
        round(TRANSLATION * side * (2 * number - 1))
        for side, number in zip((height, width), numbers[:2], strict=True)
    )
    return torch.kron(_shift(height, down), _shift(width, right))


def crop(height: int, width: int, numbers: Sequence[float]) -> Tensor:
    """The matrix of a crop of 0.8 to 1 of the area, resized to the kernel.

    Parameters
    ----------
    height, width
        Of the kernel.
    numbers
        From [0, 1): area, ratio of width to height, place from the top, place from the left.

    Returns
    -------
    Tensor
        Shape ``(height·width, height·width)``.
    """
    area, ratio, top, left = numbers[:4]
    scale = SCALE[0] + (SCALE[1] - SCALE[0]) * area
    root = (RATIO[0] * (RATIO[1] / RATIO[0]) ** ratio) ** 0.5
    high = min(height, round(math.sqrt(scale) * height / root))
    wide = min(width, round(math.sqrt(scale) * width * root))
    rows = _resized(height, int(top * (height - high + 1)), high)
    columns = _resized(width, int(left * (width - wide + 1)), wide)
    return torch.kron(rows, columns)


def choice(height: int, width: int, numbers: Sequence[float]) -> Tensor:
    """The matrix of one of the two; see :func:`translate` and :func:`crop`.

    Parameters
    ----------
    numbers
        Those of the transform, and one that is below 0.5 for a translation.
    """
    return (translate if numbers[4] < 0.5 else crop)(height, width, numbers)


_DRAWS: dict[Transform, Callable[[int, int, Sequence[float]], Tensor]] = {
    "translate": translate,
    "crop": crop,
    "choice": choice,
}


def _shift(side: int, offset: int) -> Tensor:
    """Entry i goes to i + offset: ``(side, side)``."""
    return torch.diag(torch.ones(side - abs(offset)), -offset)


def _resized(side: int, start: int, length: int) -> Tensor:
    """Entries from ``start`` on, ``length`` of them, become ``side``: ``(side, side)``."""
    matrix = torch.zeros(side, side)
    # Resizing each unit vector gives the weights of one entry in all places.
    stretched = interpolate(torch.eye(length)[None], side, mode="linear", align_corners=False)
    matrix[:, start : start + length] = stretched[0].T
    return matrix


def apply(matrix: Tensor, kernels: Tensor) -> Tensor:
    """Transform the planes of all filters.

    Parameters
    ----------
    matrix
        M, of a draw; its transpose gives the adjoint transform.
    kernels
        Shape ``(out, in, height, width)``.
    """
    return (kernels.flatten(-2) @ matrix.T.to(kernels)).view_as(kernels)


def kernels(model: nn.Module) -> dict[str, Tensor]:
    """The weights that have shadows, by name: of 2-D convolutions with sides of at least 3.

    Raises
    ------
    ValueError
        If there is none, or one is itself made of other weights.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and min(module.kernel_size) >= SMALLEST:
            weight = f"{name}.weight".lstrip(".")
            if is_parametrized(module, "weight"):
                raise ValueError(f"{weight} is made from other weights, and cannot have a shadow")
            found[weight] = module.weight
    if not found:
        raise ValueError(
            f"the model has no 2-D convolution with a kernel of {SMALLEST}x{SMALLEST} or larger"
        )
    return found


class ShadowWeights(nn.Module):
    """A model whose kernels have shadow weights α·T(W) while it is trained.

    Train it in the place of the model. The model itself stays plain, with the names, shapes and
    state that it has, and the optimiser's steps are on its own parameters:

    >>> shadow = ShadowWeights(model, "translate", torch.Generator().manual_seed(0))
    >>> optimizer = torch.optim.SGD(shadow.parameters(), lr=0.1)   # the model's, and the scales
    >>> loss_fn(shadow.train()(images), labels).backward()
    >>> reestimate(model, batches)           # of fedwsa.models.batch_norm, if it has BatchNorm
    >>> model.eval()(images)                                       # deploys the plain weights

    Parameters
    ----------
    model
        Has kernels, see :func:`kernels`.
    transform
        What T is drawn from: a draw for each layer at each forward pass.
    random
        Draws; on the CPU, wherever the model lies.
    deploy
        What stands in evaluation mode: ``plain``, W without a scale (the paper's accuracy-oriented
        mode); ``shadow``, a draw as in training (its desire-oriented mode).

    Attributes
    ----------
    scales : ParameterList
        α of each layer, in the order of :func:`kernels`; 1 at first.

    Raises
    ------
    ValueError
        If no weight can have a shadow.

    Source: arXiv 2405.19590.

    Limitations: BatchNorm's statistics are those under shadow weights, which
    :func:`fedwsa.models.batch_norm.reestimate` measures anew for the plain ones. Without a norm
    behind a layer a scale that has moved away from 1 is missing in the plain model.
    """

    def __init__(
        self,
        model: nn.Module,
        transform: Transform,
        random: torch.Generator,
        deploy: Literal["plain", "shadow"] = "plain",
    ) -> None:
        super().__init__()
        self.model, self.transform, self.deploy = model, transform, deploy
        self._random, self._names = random, tuple(kernels(model))
        self.scales = nn.ParameterList(
            torch.ones((), device=w.device, dtype=w.dtype) for w in kernels(model).values()
        )

    def draw(self) -> dict[str, Tensor]:
        """The next shadow weights, by the names of the plain ones."""
        drawn = torch.rand(len(self._names), _NUMBERS, generator=self._random, dtype=torch.float64)
        shadows = {}
        for name, scale, numbers in zip(self._names, self.scales, drawn.tolist(), strict=True):
            plain = self.model.get_parameter(name)
            height, width = plain.shape[2:]
            # In the precision of the weights, whatever the convolutions take.
            with torch.autocast(plain.device.type, enabled=False):
                matrix = _DRAWS[self.transform](height, width, numbers)
                shadows[name] = scale * apply(matrix, plain)
        return shadows

    def forward(self, *inputs: Any) -> Any:
        """What the model answers, with shadow or with plain weights."""
        if self.training or self.deploy == "shadow":
            return functional_call(self.model, self.draw(), inputs)
        return self.model(*inputs)
