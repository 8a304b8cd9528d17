"""What is left of a tensor that goes over the wire in fewer bits: ``(tensor, random, **keys)``.

Each returns what the server makes of it, and the bits that were sent.
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

_FLOAT = 32
Share = Annotated[float, Field(gt=0, le=1)]


class Sent(NamedTuple):
    """A tensor that was sent.

    Attributes
    ----------
    tensor : Tensor
        As it arrives, of the shape that it had.
    bits : float
        What that took.
    """

    tensor: Tensor
    bits: float


def none(tensor: Tensor, random: torch.Generator) -> Sent:
    """All of it, in single precision."""
    return Sent(tensor, _FLOAT * tensor.numel())


def top_k(tensor: Tensor, random: torch.Generator, *, share: Share) -> Sent:
    """The largest entries alone, each with its place.

    Source: Sparsified SGD with Memory, arXiv 1809.07599.

    Parameters
    ----------
    share
        Of the entries; at least one stays.
    """
    flat, count = tensor.flatten(), _kept(tensor, share)
    places = flat.abs().topk(count).indices
    found = torch.zeros_like(flat)
    found[places] = flat[places]
    bits = count * (_FLOAT + math.ceil(math.log2(max(2, flat.numel()))))
    return Sent(found.view_as(tensor), bits)


def random_k(tensor: Tensor, random: torch.Generator, *, share: Share, unbiased: bool) -> Sent:
    """Entries at places that follow from a seed, which is all that is sent of them.

    Source: Sparsified SGD with Memory, arXiv 1809.07599.

    Parameters
    ----------
    share
        Of the entries; at least one stays.
    unbiased
        Whether those that stay count 1/share times, so that the mean over draws is the tensor; not
        with a memory, which would send the rest again.
    """
    flat, count = tensor.flatten(), _kept(tensor, share)
    places = torch.randperm(flat.numel(), generator=random)[:count].to(flat.device)
    found = torch.zeros_like(flat)
    found[places] = flat[places] * (flat.numel() / count if unbiased else 1.0)
    return Sent(found.view_as(tensor), count * _FLOAT + 64)


def qsgd(
    tensor: Tensor, random: torch.Generator, *, levels: PositiveInt, bucket: PositiveInt
) -> Sent:
    """Each entry rounded at random to one of so many parts of the norm; its mean is the entry.

    Norms are of buckets of entries: the error grows with the square root of their size. It is none
    that a memory could bear, which would grow without bound where it is larger than the update.
    Bits are those of signs, levels and norms, without the paper's Elias code.

    Source: QSGD, arXiv 1610.02132, sections 3.1 and 4.
    """
    count = tensor.numel()
    flat = torch.nn.functional.pad(tensor.flatten(), (0, -count % bucket)).view(-1, bucket)
    norms = flat.norm(dim=1, keepdim=True)
    parts = flat.abs() * (levels / norms.clamp(min=1e-30))
    drawn = torch.rand(flat.shape, generator=random, dtype=torch.float32).to(flat)
    rounded = parts.floor() + (drawn < parts - parts.floor())
    found = (flat.sign() * rounded * (norms / levels)).flatten()[:count].view_as(tensor)
    bits = _FLOAT * len(norms) + count * (1 + math.ceil(math.log2(levels + 1)))
    return Sent(found, bits)


def sign(tensor: Tensor, random: torch.Generator) -> Sent:
    """The signs, and the mean of the absolute values.

    Source: Error Feedback Fixes SignSGD, arXiv 1901.09847.
    """
    return Sent(tensor.sign() * tensor.abs().mean(), _FLOAT + tensor.numel())


def low_rank(tensor: Tensor, random: torch.Generator, *, rank: PositiveInt) -> Sent:
    """A matrix of low rank by a step of power iteration; what is no smaller so is sent whole.

    Convolutions are matrices with a row for each output. It begins at random in each round, where
    the paper begins with the last round's.

    Source: PowerSGD, arXiv 1905.13727, algorithm 1.
    """
    if tensor.dim() < 2:
        return none(tensor, random)
    matrix = tensor.flatten(1)
    rows, columns = matrix.shape
    if rank * (rows + columns) >= rows * columns:
        return none(tensor, random)
    begin = torch.randn(columns, rank, generator=random, dtype=torch.float32).to(matrix)
    left, _ = torch.linalg.qr(matrix @ begin)
    found = left @ (left.T @ matrix)
    return Sent(found.view_as(tensor), _FLOAT * rank * (rows + columns))


def _kept(tensor: Tensor, share: float) -> int:
    return max(1, round(share * tensor.numel()))
