"""WAVE's rule on plain tensors: weights from scalers and templates, and back.

W = Σ_t S_t ⊗ T_t: block (i, j) of W is Σ_t S_t[i, j]·T_t. Source: WAVE, arXiv 2406.17503.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor


def kronecker(scalers: Tensor, templates: Tensor) -> Tensor:
    """The weight Σ_t S_t ⊗ T_t.

    Parameters
    ----------
    scalers
        S, shape ``(N, a, b)``.
    templates
        T, shape ``(N, p, q, *kernel)``.

    Returns
    -------
    Tensor
        Shape ``(a·p, b·q, *kernel)``.
    """
    n, a, b = scalers.shape
    p, q, *kernel = templates.shape[1:]
    blocks = scalers.reshape(n, a * b).T @ templates.reshape(n, -1)  # one product for all blocks
    return blocks.view(a, b, p, q, -1).permute(0, 2, 1, 3, 4).reshape(a * p, b * q, *kernel)


def structured_linear(x: Tensor, scalers: Tensor, templates: Tensor) -> Tensor:
    """x·Wᵀ without building W: with x as X ``(b, q)``, y = vec(Σ_t S_t X T_tᵀ).

    Parameters
    ----------
    x
        Shape ``(…, b·q)``.
    scalers, templates
        S ``(N, a, b)`` and T ``(N, p, q)``.

    Returns
    -------
    Tensor
        Shape ``(…, a·p)``.
    """
    n, a, b = scalers.shape
    p, q = templates.shape[1:]
    inner = x.reshape(-1, q) @ templates.permute(2, 0, 1).reshape(q, n * p)  # X T_tᵀ for all t
    inner = inner.view(-1, b * n, p)
    outer = scalers.permute(1, 2, 0).reshape(a, b * n) @ inner  # Σ_t S_t (…)
    return outer.reshape(*x.shape[:-1], a * p)


def structured_is_cheaper(rows: int, scalers: Tensor, templates: Tensor) -> bool:
    """Whether :func:`structured_linear` of so many rows multiplies less than building W first.

    It takes rows·N·b·p·(q + a) multiplications, against N·a·b·p·q + rows·a·b·p·q: so it pays for
    a few rows, or where few templates make a tall weight. Measured on one core it is faster just
    about where it multiplies less.
    """
    n, a, b = scalers.shape
    p, q = templates.shape[1:]
    return rows * n * b * p * (q + a) < (n + rows) * a * b * p * q


def fit_scalers(weight: Tensor, templates: Tensor) -> Tensor:
    """The scalers that come closest to a weight: least squares over the N templates.

    Parameters
    ----------
    weight
        Shape ``(a·p, b·q, *kernel)``.
    templates
        Shape ``(N, p, q, *kernel)``.

    Returns
    -------
    Tensor
        Shape ``(N, a, b)``, in the dtype of ``weight``.

    Raises
    ------
    ValueError
        If the weight is not made of whole blocks.
    """
    a, b = grid(weight.shape, templates.shape[1:])
    n, blocks = len(templates), blocks_of(weight, templates.shape[1:])
    basis = templates.detach().reshape(n, -1).double().T
    # gelsd: templates that depend on each other give the smallest scalers, not infinite ones
    driver = "gelsd" if basis.device.type == "cpu" else None
    found: Tensor = torch.linalg.lstsq(basis, blocks.detach().double().T, driver=driver).solution
    return found.reshape(n, a, b).to(weight.dtype)


def blocks_of(weight: Tensor, template: Sequence[int]) -> Tensor:
    """The blocks of a weight, a row each: shape ``(a·b, p·q·kernel)``, row by row of blocks.

    Raises
    ------
    ValueError
        If it is not made of whole ones.
    """
    a, b = grid(weight.shape, template)
    p, q, *kernel = template
    return weight.reshape(a, p, b, q, prod(kernel)).permute(0, 2, 1, 3, 4).reshape(a * b, -1)


def grid(shape: Sequence[int], template: Sequence[int]) -> tuple[int, int]:
    """How many blocks of a template's shape ``(p, q, *kernel)`` a weight has along both sides.

    Raises
    ------
    ValueError
        If it is not made of whole ones.
    """
    fits = len(shape) == len(template) and tuple(shape[2:]) == tuple(template[2:])
    if not fits or shape[0] % template[0] or shape[1] % template[1]:
        raise ValueError(
            f"a weight of {'x'.join(map(str, shape))} is not made of whole templates of "
            f"{'x'.join(map(str, template))}"
        )
    return shape[0] // template[0], shape[1] // template[1]


def scaler_count(shape: Sequence[int], template: Sequence[int], count: int) -> int:
    """N·mn/(pq), the scalers of a weight ``(m, n, …)``."""
    a, b = grid(shape, template)
    return count * a * b
