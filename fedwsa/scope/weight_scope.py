"""Weight scopes: the mean and variance of each layer's weights, and what is done with them.

The weights of one layer of a trained network are close to Gaussian; the *weight scope* of a
layer is that Gaussian, N(μ, σ²), with population statistics over all entries of its weight
tensor. Models whose scopes differ average badly. This module measures scopes, compares them
(KL) and fuses the scopes of many models into one; :mod:`fedwsa.scope.rescale` moves weights to one.

Everything here is a function of tensors: it knows nothing of rounds, clients or messages.

References
----------
Weight Scope Alignment, arXiv 2408.12237.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from fedwsa.scope.moments import exact_moments, moments, stacked_moments

Fusion = Literal["moments", "mean_variance", "mean_std"]
"""How the variances of many scopes become one; see :func:`spread`."""

Reduction = Literal["layer", "entries"]
"""``layer``: the KL of a layer as written; ``entries``: n·KL, for its n entries."""

DEFAULT_STRENGTH: dict[str, float] = {"layer": 1.0, "entries": 0.01}
"""λ by reduction: the n of n·KL makes the same λ a thousand times stronger."""

NORMALISED_STRENGTH: dict[str, float] = {"layer": 10.0, "entries": 0.01}
"""Likewise of normalised scopes, by which networks of several widths are aligned.

Both by what was measured (docs/results.md, docs/sizes.md): among networks of one size λ = 10 costs
accuracy and λ = 1 does not; among several sizes the gain grows up to λ = 10.
"""

DEFAULT_FLOOR = 1e-4
"""Smallest standard deviation a scope counts with: constant layers have no finite KL."""


def choose(allowed: object, value: str, what: str) -> str:
    """Return ``value`` if the ``Literal`` type ``allowed`` has it.

    Raises
    ------
    ValueError
        Names what was asked for and what is allowed.
    """
    if value not in get_args(allowed):
        raise ValueError(f"{what} must be one of {', '.join(get_args(allowed))}; got {value!r}")
    return value


def scoped_layers(tensors: Mapping[str, Tensor], layers: str | None = None) -> list[str]:
    """Names of the weight tensors that have a scope, in the order of ``tensors``.

    These are the floating-point tensors with at least two dimensions: biases and the gains of
    norms are nearly constant, so that a Gaussian says nothing about them. A tensor without
    entries has no scope either.

    Parameters
    ----------
    tensors
        A state dict.
    layers
        A regular expression, searched in each name, that narrows the choice; None takes all.

    Raises
    ------
    ValueError
        If no tensor is left, or ``layers`` is not a regular expression.
    """
    names = [k for k, t in tensors.items() if _has_scope(t)]
    if layers is None:
        chosen = names
    else:
        try:
            pattern = re.compile(layers)
        except re.error as error:
            raise ValueError(f"layers={layers!r} is not a regular expression: {error}") from None
        chosen = [k for k in names if pattern.search(k)]
    if not chosen:
        raise ValueError(
            f"no weight tensor matches layers={layers!r}; those with two or more dimensions "
            f"are: {', '.join(names) or 'none'}"
        )
    return chosen


def _has_scope(tensor: Tensor) -> bool:
    return tensor.dim() >= 2 and tensor.is_floating_point() and tensor.numel() > 0


def fan_in(tensors: Iterable[Tensor]) -> Tensor:
    """What each unit of a layer reads: entries over outputs, shape ``(L,)``, float64.

    A standard initialisation has σ ∝ 1/√fan_in, so that scopes times its root, see
    :meth:`WeightScope.times`, compare across widths.
    """
    return torch.tensor([t.numel() / t.shape[0] for t in tensors], dtype=torch.float64)


def spread(mean: Tensor, variance: Tensor, fusion: Fusion) -> Tensor:
    """What a model reports beside its mean, so that a weighted average of it fuses scopes.

    ======================  =============  ============================
    fusion                  spread         σ̃² from averages m̄ and s̄
    ======================  =============  ============================
    ``moments`` (default)   σ² + μ²        s̄ − m̄²
    ``mean_variance``       σ²             s̄
    ``mean_std``            σ              s̄²
    ======================  =============  ============================

    ``moments`` minimises Σ_k p_k KL(N_k ‖ Ñ). The WSA paper fuses scopes without giving a
    formula for the variance; these three are ours. Inverse: :func:`variance_from`.
    """
    match choose(Fusion, fusion, "fusion"):
        case "moments":
            return variance + mean.square()
        case "mean_variance":
            return variance
        case _:
            return variance.sqrt()


def variance_from(mean: Tensor, spread: Tensor, fusion: Fusion) -> Tensor:
    """Fused variance from the averages of means and spreads (see :func:`spread`)."""
    match choose(Fusion, fusion, "fusion"):
        case "moments":
            return (spread - mean.square()).clamp(min=0.0)
        case "mean_variance":
            return spread
        case _:
            return spread.square()


def kl_divergence(
    mean: Tensor, variance: Tensor, target_mean: Tensor, target_variance: Tensor, floor: float
) -> Tensor:
    """KL( N(μ, σ²) ‖ N(μ̃, σ̃²) ) = ln(σ̃/σ) + (σ² + (μ−μ̃)²)/(2σ̃²) − ½, element by element.

    ``floor`` bounds both standard deviations from below. Source: arXiv 2408.12237.
    """
    var = variance.clamp(min=floor**2)
    target = target_variance.clamp(min=floor**2)
    return 0.5 * ((target / var).log() + (var + (mean - target_mean).square()) / target - 1.0)


@torch.no_grad()
def add_kl_gradient_(
    gradients: Sequence[Tensor],
    weights: Sequence[Tensor],
    target: WeightScope,
    strength: float,
    *,
    reduction: Reduction = "layer",
    floor: float = DEFAULT_FLOOR,
    stacked: bool = False,
) -> None:
    """Add the gradient of ``strength · Σ_l KL(N_l ‖ Ñ_l)`` to ``gradients``, in place.

    In closed form: ∂KL/∂θ_i = (1/n)·[(μ−μ̃)/σ̃² + (θ_i−μ)·(1/σ̃² − 1/σ²)], which is a·θ_i + b
    with two numbers a layer, so nothing is kept for autograd and a GPU is never waited for.
    Where σ is below ``floor`` the KL does not depend on it and the term −1/σ² is left out.

    Parameters
    ----------
    gradients, weights
        L tensors each, of equal shapes; gradients are changed.
    target
        The scope aimed at, with L layers in the same order.
    strength
        λ. Zero changes nothing, bit for bit.
    reduction
        ``layer``: KL as written. ``entries``: n·KL, whose pull on an entry does not shrink
        with the size of its layer.
    stacked
        Whether each tensor is a stack ``(K, …)`` of those of K clients.
    """
    if strength == 0.0:
        return
    one = (-1, 1) if stacked else (-1,)  # a number a layer, as the moments are
    mean, variance = (stacked_moments if stacked else moments)(weights)
    target_mean = target.mean.to(mean).view(one)
    target_variance = target.variance.to(mean).clamp(min=floor**2).view(one)
    scale = torch.full_like(mean, strength)
    if choose(Reduction, reduction, "reduction") == "layer":
        sizes = [w[0].numel() if stacked else w.numel() for w in weights]
        scale /= torch.tensor(sizes, dtype=mean.dtype, device=mean.device).view(one)
    # Of 1/σ̃² − 1/σ², the first part comes from σ²/(2σ̃²), the second from −ln σ; both are
    # derivatives by σ, and the clamp at the floor makes both vanish below it.
    slope = (1.0 / target_variance - 1.0 / variance.clamp(min=floor**2)) * (variance > floor**2)
    a = scale * slope
    b = scale * (mean - target_mean) / target_variance - a * mean
    dtype = weights[0].dtype
    factors, terms = (list(number.to(dtype).unbind()) for number in (a, b))
    if stacked:
        columns = [(-1, *[1] * (w.dim() - 1)) for w in weights]
        factors = [f.view(column) for f, column in zip(factors, columns, strict=True)]
        terms = [t.view(column) for t, column in zip(terms, columns, strict=True)]
    torch._foreach_addcmul_(list(gradients), list(weights), factors)
    torch._foreach_add_(list(gradients), terms)


def stability(
    weights: Mapping[str, Tensor],
    target: WeightScope,
    strength: float,
    reduction: Reduction,
    lr: float,
) -> dict[str, float]:
    """ηλ/(nσ̃²) of each layer (``layer``), or ηλ/σ̃² (``entries``): above 1 local steps diverge.

    At the target, the steepest direction of a layer's KL is the one that stretches its weights:
    curvature λ/n·(1/σ² + 1/σ̃²) = 2λ/(nσ̃²), and gradient descent is stable while η times the
    curvature is below 2. Momentum only widens that (to 2 + 2m).

    Parameters
    ----------
    weights
        A state dict, for the sizes n of its layers.
    lr
        η of the local SGD.
    """
    ratios = {}
    for name, variance in zip(target.names, target.variance.tolist(), strict=True):
        n = weights[name].numel() if reduction == "layer" else 1
        ratios[name] = lr * strength / (n * variance) if variance > 0 else float("inf")
    return ratios


class _Named(Protocol):
    @property
    def names(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, eq=False)
class WeightScope:
    """Mean and variance of each layer's weights.

    Attributes
    ----------
    names : tuple of str
        The L layers, as a state dict names them.
    mean, variance : Tensor
        Shape ``(L,)``, float64.

    Examples
    --------
    >>> scope = WeightScope.measure(torch.nn.Linear(784, 10))
    >>> scope.names
    ('weight',)
    """

    names: tuple[str, ...]
    mean: Tensor
    variance: Tensor

    def __post_init__(self) -> None:
        shape = (len(self.names),)
        if self.mean.shape != shape or self.variance.shape != shape:
            raise ValueError(
                f"a scope of {shape[0]} layers needs as many means and variances; got "
                f"{tuple(self.mean.shape)} and {tuple(self.variance.shape)}"
            )
        finite = self.mean.isfinite() & self.variance.isfinite() & (self.variance >= 0)
        if not finite.all():
            bad = [n for n, ok in zip(self.names, finite.tolist(), strict=True) if not ok]
            raise ValueError(
                f"impossible scope (NaN, infinite or negative variance): {', '.join(bad)}"
            )

    @classmethod
    def of(
        cls, names: Iterable[str], mean: Sequence[float], variance: Sequence[float]
    ) -> WeightScope:
        """A scope from plain numbers, one mean and variance a layer."""
        return cls(
            tuple(names),
            torch.tensor(mean, dtype=torch.float64),
            torch.tensor(variance, dtype=torch.float64),
        )

    @classmethod
    @torch.no_grad()
    def measure(
        cls, model: nn.Module | Mapping[str, Tensor], layers: str | None = None
    ) -> WeightScope:
        """Measure a model or a state dict.

        Parameters
        ----------
        model
            What to measure.
        layers
            See :func:`scoped_layers`.

        Raises
        ------
        ValueError
            If no layer takes part, or a weight is not finite.
        """
        tensors = model.state_dict() if isinstance(model, nn.Module) else model
        names = scoped_layers(tensors, layers)
        mean, variance = exact_moments([tensors[n].detach() for n in names])
        return cls(tuple(names), mean.cpu(), variance.cpu())

    @property
    def std(self) -> Tensor:
        """Standard deviations, shape ``(L,)``."""
        return self.variance.sqrt()

    def times(self, factor: Tensor) -> WeightScope:
        """The scope of the weights times a factor per layer, shape ``(L,)``."""
        return WeightScope(self.names, self.mean * factor, self.variance * factor.square())

    def only(self, names: Sequence[str]) -> WeightScope:
        """The scope of some of the layers, in the order of ``names``."""
        place = [self.names.index(name) for name in names]
        return WeightScope(tuple(names), self.mean[place], self.variance[place])

    def kl(self, target: WeightScope, floor: float = DEFAULT_FLOOR) -> Tensor:
        """KL of each layer from this scope to ``target``, shape ``(L,)``.

        Raises
        ------
        ValueError
            If the two scopes are of different layers.
        """
        require_same_layers([self, target])
        return kl_divergence(self.mean, self.variance, target.mean, target.variance, floor)

    @classmethod
    def fuse(
        cls,
        scopes: Sequence[WeightScope],
        weights: Sequence[float] | None = None,
        fusion: Fusion = "moments",
    ) -> WeightScope:
        """One scope for many: μ̃ = Σ p_k μ_k, and σ̃² by the rule ``fusion``.

        Parameters
        ----------
        scopes
            K scopes of the same layers.
        weights
            K non-negative numbers, for instance examples; p_k is their share. None: equal.
        fusion
            See :func:`spread`.

        Raises
        ------
        ValueError
            If layers differ or the weights do not add up to a positive, finite number.
        """
        require_same_layers(scopes)
        share = torch.tensor(
            [1.0] * len(scopes) if weights is None else list(weights), dtype=torch.float64
        )
        if len(share) != len(scopes):
            raise ValueError(f"{len(scopes)} scopes need as many weights; got {len(share)}")
        if not ((share >= 0).all() and 0 < share.sum() < math.inf):
            raise ValueError(
                f"weights must be non-negative with a positive, finite sum; got {share.tolist()}"
            )
        share = share / share.sum()
        mean = share @ torch.stack([s.mean for s in scopes])
        spreads = torch.stack([spread(s.mean, s.variance, fusion) for s in scopes])
        return cls(scopes[0].names, mean, variance_from(mean, share @ spreads, fusion))


def require_same_layers(scopes: Sequence[_Named]) -> None:
    """Refuse scopes, or ranges, of different layers, naming the difference."""
    if not scopes:
        raise ValueError("at least one scope is needed")
    for other in scopes[1:]:
        if other.names != scopes[0].names:
            differing = sorted(set(other.names) ^ set(scopes[0].names)) or ["their order"]
            raise ValueError(f"scopes of different layers: {', '.join(differing)}")
