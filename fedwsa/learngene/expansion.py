"""TLEG: every block is a linear expansion of two shared ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedwsa import seeding
from fedwsa.learngene.base import (
    Method,
    Target,
    Task,
    blocks_of,
    same_width,
    sequence_of,
    standard_state,
)
from fedwsa.learngene.gene import Learngene
from fedwsa.learngene.resize import resized
from fedwsa.models.architecture import outline

_BASE, _SLOPE = "base/", "slope/"


def expanded(base: Tensor, slope: Tensor, position: int, depth: int) -> Tensor:
    """θ_l = θ_A + (l/L)·θ_B of block l = 0 … L−1, so that the first one is θ_A in every depth.

    Source: arXiv 2312.05614, and its authors' code for where l begins.
    """
    return base + (position / depth) * slope


class ExpandedNetwork(nn.Module):
    """A network whose blocks are made from two sets of tensors whenever it is used.

    Parameters
    ----------
    model
        A standard network; its first block begins θ_A. Of θ_B matrices begin as normal numbers
        of σ 0.02, cut at two units, norms and biases at zero (the authors' code).
    random
        Draws θ_B.
    sequence, numbers
        Of the blocks.
    """

    def __init__(
        self,
        model: nn.Module,
        sequence: str,
        numbers: list[int],
        random: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self._numbers, self._sequence = numbers, sequence
        self._model = [model]  # in a list: its blocks' own weights are no parameters of this
        block = model.get_submodule(f"{sequence}{numbers[0]}")
        first = {k: p.detach() for k, p in block.named_parameters()}
        self._names = list(first)
        self.base = nn.ParameterList([p.clone() for p in first.values()])
        slopes = [torch.zeros_like(p) for p in first.values()]
        for slope in slopes:
            if slope.dim() >= 2:
                drawn = nn.init.trunc_normal_(torch.empty(slope.shape), std=0.02, generator=random)
                slope.copy_(drawn)
        self.slope = nn.ParameterList(slopes)
        inside = tuple(f"{sequence}{n}." for n in numbers)
        shell = {k: p for k, p in model.named_parameters() if not k.startswith(inside)}
        self._shell_names = list(shell)
        self.shell = nn.ParameterList(shell.values())

    def forward(self, x: Tensor) -> Tensor:
        """As the network with the expanded blocks."""
        weights: dict[str, Tensor] = dict(zip(self._shell_names, self.shell, strict=True))
        depth = len(self._numbers)
        for i, number in enumerate(self._numbers):
            for name, base, slope in zip(self._names, self.base, self.slope, strict=True):
                key = f"{self._sequence}{number}.{name}"
                weights[key] = expanded(base, slope, i, depth)
        result: Tensor = functional_call(self._model[0], weights, (x,))
        return result

    def tensors(self) -> dict[str, Tensor]:
        """θ_A and θ_B under their prefixes, and the rest of the network."""
        return {
            **{_BASE + k: p for k, p in zip(self._names, self.base, strict=True)},
            **{_SLOPE + k: p for k, p in zip(self._names, self.slope, strict=True)},
            **dict(zip(self._shell_names, self.shell, strict=True)),
        }


class LinearExpansion(Method):
    """TLEG: networks of other depths from two blocks θ_A and θ_B.

    Source: arXiv 2312.05614 and its authors' code: blocks are counted from 0, and the teacher's
    soft answers alone are learned.
    """

    name, serves = "tleg", "width"
    temperature, hard = 1.0, 0.0  # soft labels alone, as the authors' code has it

    def check(self, task: Task) -> None:
        """Refuse networks without equal blocks."""
        blocks_of(task)

    def learn(self, task: Task) -> Learngene:
        """Train a network whose blocks are linear expansions."""
        sequence, numbers = blocks_of(task)
        random = seeding.generator(task.lesson.seed, "slopes")
        model = ExpandedNetwork(task.network(), sequence, numbers, random)
        model.to(task.lesson.device)
        task.train(model, self)
        single = task.model.replace(depth=int(task.model.arguments["depth"]) - len(numbers) + 1)
        return task.gene(self.name, single, model.tensors())

    def initialise(self, gene: Learngene, target: Target) -> dict[str, Tensor]:
        """The expansion in the target's depth."""
        same_width(gene, target)
        sequence, numbers = sequence_of(gene.source, gene.architecture)
        block = f"{sequence}{numbers[0]}."
        gene.require(_expected(gene.source.shapes, block))
        wanted = outline(target.model, gene.shape, target.classes)
        _, all_numbers = sequence_of(wanted, gene.architecture)
        shell = {k: t for k, t in gene.tensors.items() if not k.startswith((_BASE, _SLOPE))}
        made = {**standard_state(target, gene.shape)}
        made |= resized(shell, gene.source, wanted, gene.architecture, rescale=False)
        for i, number in enumerate(all_numbers):
            for key, base in gene.tensors.items():
                if key.startswith(_BASE):
                    name = key.removeprefix(_BASE)
                    value = expanded(base, gene.tensors[_SLOPE + name], i, len(all_numbers))
                    made[f"{sequence}{number}.{name}"] = value
        return made


def _expected(shapes: Mapping[str, torch.Size], block: str) -> dict[str, torch.Size]:
    """Names and shapes of the tensors of a learngene, from those of a network with one block."""
    found = {}
    for name, shape in shapes.items():
        if name.startswith(block):
            found[_BASE + name.removeprefix(block)] = shape
            found[_SLOPE + name.removeprefix(block)] = shape
        else:
            found[name] = shape
    return found
