"""WAVE: weights of every width and depth from small templates, by Kronecker products.

The weight of layer l in weight group g is W_l = Σ_t S_{l,t} ⊗ T_{g,t}: block (i, j) of W is
Σ_t S_{l,t}[i, j]·T_{g,t}. The *templates* T are shared by all layers of the group, in networks
of all sizes; the *scalers* S, a few numbers a layer, belong to one layer of one network.
Everything else (embeddings, norms, biases, head) is the *shell*.

In a network the rule is a parametrisation of ``torch.nn.utils.parametrize``: the weight is made
from scalers and templates whenever it is used, and materialising is removing it. All layers of a
group hold the same Parameter, so ``parameters()`` has it once; state dicts would repeat it, so a
network is saved, sent and loaded by :func:`state` and :func:`load`.

Source: WAVE, arXiv 2406.17503. Ours, since the abstract does not say: the order S ⊗ T, the
sizes of the templates, how scalers start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import gcd, sqrt

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import (
    is_parametrized,
    register_parametrization,
    remove_parametrizations,
)

from fedwsa.learngene.kronecker import (
    fit_scalers,
    grid,
    kronecker,
    structured_is_cheaper,
    structured_linear,
)
from fedwsa.models.architecture import Architecture, Axis, Outline

TEMPLATES, SCALERS = "templates/", "scalers/"
"""Prefixes of the names of templates and scalers in :func:`state`."""


def template_shapes(
    family: Sequence[Outline], architecture: Architecture, divide: int = 1
) -> dict[str, tuple[int, ...]]:
    """The largest templates ``(p, q, *kernel)`` of each group that make all weights of a family.

    p and q are the greatest common divisors of the units, so that a block never cuts through an
    attention head or a flattened channel. With ``divide`` they are its n-th part.

    Raises
    ------
    ValueError
        If they cannot be divided so, the networks have no weight in a group, heads or kernels of
        several sizes, or widths without a common divisor.
    """
    found: dict[str, tuple[int, ...]] = {}
    for group in architecture.groups:
        sizes: list[list[tuple[Axis, int]]] = [[], []]
        kernels = set()
        for member in family:
            for name, shape in member.shapes.items():
                if architecture.group(name) != group:
                    continue
                kernels.add(tuple(shape[2:]))
                for side in (0, 1):
                    axis = member.axes.get(name, {}).get(side, Axis())
                    sizes[side].append((axis, shape[side]))
        if not kernels:
            continue  # a network so shallow that it has none
        if len(kernels) > 1:
            raise ValueError(f"{group}: kernels of several sizes: {sorted(kernels)}")
        rows, columns = (_block(group, side, divide) for side in sizes)
        found[group] = (rows, columns, *kernels.pop())
        if found[group][:2] == (1, 1):
            there = [", ".join(map(str, sorted({n for _, n in side}))) for side in sizes]
            raise ValueError(
                f"{group}: {there[0]} by {there[1]} units "
                "have no common divisor, so that a template would be a single number; take widths "
                "that are multiples of one another"
            )
    if not found:
        raise ValueError("the networks have no weight that templates could make")
    return found


def _block(group: str, sizes: Sequence[tuple[Axis, int]], divide: int) -> int:
    inner = {axis.inner for axis, _ in sizes}
    if len(inner) > 1:
        raise ValueError(
            f"{group}: units (attention heads, flattened channels) of several sizes: "
            f"{', '.join(map(str, sorted(inner)))}; give all networks the same"
        )
    units = gcd(*(axis.units(size) for axis, size in sizes))
    if units % divide:
        raise ValueError(f"{group}: templates of {units} units have no {divide} equal parts")
    return units // divide * inner.pop()


class Kronecker(nn.Module):
    """The parametrisation of a weight: scalers → weight.

    Parameters
    ----------
    templates
        Shape ``(N, p, q, *kernel)``; one Parameter that all layers of a group hold.
    """

    def __init__(self, templates: nn.Parameter) -> None:
        super().__init__()
        self.templates = templates

    def forward(self, scalers: Tensor) -> Tensor:
        """The layer's weight, made from its template and scalers."""
        return kronecker(scalers, self.templates)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The scalers of the closest weight, so that a weight can be assigned."""
        return fit_scalers(weight, self.templates)


class TemplatedLinear(nn.Linear):
    """A linear layer that does not build its weight for a few rows."""

    def forward(self, x: Tensor) -> Tensor:
        """As a linear layer; see :func:`structured_is_cheaper`."""
        if _is_templated(self):
            rule, scalers = _rule(self)
            if structured_is_cheaper(x.numel() // x.shape[-1], scalers, rule.templates):
                y = structured_linear(x, scalers, rule.templates)
                return y if self.bias is None else y + self.bias
        return super().forward(x)


def _rule(module: nn.Module) -> tuple[Kronecker, nn.Parameter]:
    """The parametrisation of a layer, and its scalers."""
    chain = module.parametrizations["weight"]  # type: ignore[index]
    return chain[0], chain.original  # type: ignore[return-value, union-attr]


def attach(model: nn.Module, architecture: Architecture, templates: Mapping[str, Tensor]) -> None:
    """Let a network make its weights from templates, in place; scalers fit what it holds.

    Parameters
    ----------
    model
        Any size that the templates can make.
    architecture
        Names the groups.
    templates
        Group → T. Tensors become Parameters; a Parameter is used as it is.

    Raises
    ------
    ValueError
        If a weight is not made of whole templates, or its group has none; the model is as it was.
    """
    layers = [
        (name.rpartition(".")[0], group)
        for name in model.state_dict()
        if (group := architecture.group(name)) is not None
    ]
    for layer, group in layers:
        if group not in templates:
            raise ValueError(f"there are no templates for {group}")
        try:
            grid(model.get_parameter(f"{layer}.weight").shape, templates[group].shape[1:])
        except ValueError as error:
            raise ValueError(f"{layer}: {error}") from None
    shared = {
        g: t if isinstance(t, nn.Parameter) else nn.Parameter(t) for g, t in templates.items()
    }
    for layer, group in layers:
        module = model.get_submodule(layer)
        if type(module) is nn.Linear:
            module.__class__ = TemplatedLinear
        register_parametrization(module, "weight", Kronecker(shared[group]))


def materialise(model: nn.Module) -> None:
    """Let a network hold its weights again, in place; the templates are gone from it."""
    for _, module in list(_templated(model)):
        remove_parametrizations(module, "weight")
        if type(module) is TemplatedLinear:
            module.__class__ = nn.Linear  # type: ignore[assignment]


def _templated(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((n, m) for n, m in model.named_modules() if _is_templated(m))


def _is_templated(module: nn.Module) -> bool:
    """Whether its weight is made from templates; a stranger's network may have other rules."""
    if not is_parametrized(module, "weight"):
        return False
    return isinstance(module.parametrizations["weight"][0], Kronecker)  # type: ignore[index]


def templates_of(model: nn.Module, architecture: Architecture) -> dict[str, nn.Parameter]:
    """Group → templates of a network."""
    found = {}
    for name, module in _templated(model):
        group = architecture.group(f"{name}.weight")
        assert group is not None
        found[group] = _rule(module)[0].templates
    return found


def scalers_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Layer → scalers of a network."""
    return {name: _rule(module)[1] for name, module in _templated(model)}


def made_of(model: nn.Module) -> list[nn.Parameter]:
    """Templates and scalers of a network, each once; none of a plain one."""
    rules = [_rule(module) for _, module in _templated(model)]
    found = {id(p): p for rule, scalers in rules for p in (rule.templates, scalers)}
    return list(found.values())


def shell_of(model: nn.Module) -> dict[str, Tensor]:
    """Name → everything of a network that is not made from templates, as its state dict has it."""
    made = tuple(f"{_chain(layer)}." for layer, _ in _templated(model))
    saved = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in saved.items() if not name.startswith(made)}


def _chain(layer: str) -> str:
    """Where the state dict has what the weight of a layer is made from."""
    return f"{layer}.parametrizations.weight".lstrip(".")


def state(model: nn.Module, architecture: Architecture) -> dict[str, Tensor]:
    """All of a network: templates and scalers under their prefixes, the shell by its names."""
    return {
        **{TEMPLATES + g: t for g, t in templates_of(model, architecture).items()},
        **{SCALERS + n: s for n, s in scalers_of(model).items()},
        **shell_of(model),
    }


def templates_in(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Group → templates, of those among the tensors of :func:`state`."""
    return {k.removeprefix(TEMPLATES): t for k, t in tensors.items() if k.startswith(TEMPLATES)}


def keys(model: nn.Module, architecture: Architecture) -> dict[str, list[str]]:
    """Name in :func:`state` → the keys of ``state_dict()`` that hold that tensor."""
    found: dict[str, list[str]] = {}
    for layer, _ in _templated(model):
        group = architecture.group(f"{layer}.weight")
        found.setdefault(f"{TEMPLATES}{group}", []).append(f"{_chain(layer)}.0.templates")
        found[SCALERS + layer] = [f"{_chain(layer)}.original"]
    return {**found, **{name: [name] for name in shell_of(model)}}


@torch.no_grad()
def load(model: nn.Module, architecture: Architecture, tensors: Mapping[str, Tensor]) -> None:
    """Copy what :func:`state` gave into a network with templates.

    Raises
    ------
    ValueError
        If names or shapes are not the network's; nothing is changed then.
    """
    own = state(model, architecture)
    if wrong := sorted(own.keys() ^ tensors.keys()):
        raise ValueError(f"{wrong[0]} is {'missing' if wrong[0] in own else 'unknown'}")
    for name, tensor in own.items():
        if tensors[name].shape != tensor.shape:
            raise ValueError(f"{name} is {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


@torch.no_grad()
def random_templates(
    model: nn.Module,
    architecture: Architecture,
    shapes: Mapping[str, Sequence[int]],
    count: int,
    random: torch.Generator,
) -> dict[str, nn.Parameter]:
    """Templates to begin with: as large as the weights that a standard network holds.

    Parameters
    ----------
    model
        A network without templates.
    shapes
        See :func:`template_shapes`.
    count
        N, for each group.
    """
    state = model.state_dict()
    found = {}
    for group, shape in shapes.items():
        squares = [t.square().mean() for k, t in state.items() if architecture.group(k) == group]
        if not squares:
            continue
        std = torch.stack(squares).mean().sqrt()
        found[group] = nn.Parameter(torch.randn(count, *shape, generator=random) * std)
    return found


@torch.no_grad()
def random_scalers(
    model: nn.Module, variances: Mapping[str, float], random: torch.Generator
) -> None:
    """Draw the scalers of a network such that its weights have the variances of a standard one.

    With N independent templates of mean square t², Var(W) = N·Var(S)·t².

    Parameters
    ----------
    variances
        Layer → Var(W).
    """
    for name, module in _templated(model):
        rule, scalers = _rule(module)
        size = rule.templates.square().mean().item() * len(rule.templates)
        std = sqrt(variances[name] / size) if size else 0.0
        scalers.copy_(torch.randn(scalers.shape, generator=random) * std)
