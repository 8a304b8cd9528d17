"""SWS: the blocks of an auxiliary network share weights by stages; a stage makes many blocks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from fedwsa.config.component import ConfigError
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
from fedwsa.learngene.resize import resized, stage_of_each, stages_as
from fedwsa.models.architecture import architecture_of, outline

Lengths = Annotated[list[PositiveInt], Field(min_length=1)]

_STAGES = 5  # of the paper's auxiliary network


def share_stages(model: nn.Module, sequence: str, numbers: list[int], stage: list[int]) -> None:
    """Let the blocks of a stage be one module, in place: the first of the stage."""
    first: dict[int, nn.Module] = {}
    for number, s in zip(numbers, stage, strict=True):
        path = f"{sequence}{number}"
        holder, _, name = path.rpartition(".")
        block = first.setdefault(s, model.get_submodule(path))
        setattr(model.get_submodule(holder), name, block)


class Stages(Method):
    """SWS, stage-wise weight sharing: networks of other depths from a block for each stage.

    Source: arXiv 2404.16897, whose auxiliary transformer has 16 blocks in stages of 3, 3, 4, 3, 3.
    Ours: the stages of other depths, see :func:`fedwsa.learngene.resize.stage_of_each`.

    Parameters
    ----------
    stages
        Length of each stage of the auxiliary network, adding up to its blocks. None: five
        stages, fewer where it has fewer blocks or the shallowest of the family.
    """

    name, serves = "sws", "width"
    temperature, hard = 1.0, 0.0  # soft labels alone, as the authors' code has it

    def __init__(self, *, stages: Lengths | None = None) -> None:
        self.stages = stages

    def check(self, task: Task) -> None:
        """Refuse networks without equal blocks, and stages that are not theirs."""
        self._stage(task)

    def _stage(self, task: Task) -> list[int]:
        """The stage of each block of the auxiliary network."""
        known, depth = architecture_of(task.model), len(blocks_of(task)[1])
        if self.stages is not None:
            stage = stages_as(self.stages)
        else:
            sizes = [outline(m, task.shape, task.classes) for m in task.family]
            fewest = min([depth, *(len(sequence_of(o, known)[1]) for o in sizes)])
            stage = stage_of_each(depth, min(_STAGES, fewest))
        if len(stage) != depth:
            raise ConfigError(f"stages: {self.stages} add up to {len(stage)} blocks, not {depth}")
        return stage

    def learn(self, task: Task) -> Learngene:
        """Train a network whose blocks share weights by stages; keep a block of each."""
        known, stage = architecture_of(task.model), self._stage(task)
        sequence, numbers = blocks_of(task)
        depth, model = len(numbers), task.network()
        share_stages(model, sequence, numbers, stage)
        task.train(model, self)
        count = stage[-1] + 1
        place = {numbers[stage.index(s)]: numbers[s] for s in range(count)}
        tensors: dict[str, Tensor] = {}
        for name, tensor in model.state_dict().items():
            block = known.block(name)
            if block is None:
                tensors[name] = tensor
            elif block[1] in place:
                tensors[f"{block[0]}{place[block[1]]}{block[2]}"] = tensor
        small = task.model.replace(depth=int(task.model.arguments["depth"]) - depth + count)
        return task.gene(self.name, small, tensors, stages=[stage.count(s) for s in range(count)])

    def initialise(self, gene: Learngene, target: Target) -> dict[str, Tensor]:
        """Independent copies of the stages' blocks, in the target's depth."""
        same_width(gene, target)
        gene.require(gene.source.shapes)
        lengths = gene.facts["stages"]

        def rule(depth: int, there: int) -> list[int]:
            # A depth equal to the auxiliary network's takes its own map.
            return stages_as(lengths) if depth == sum(lengths) else stage_of_each(depth, there)

        wanted = outline(target.model, gene.shape, target.classes)
        try:
            made = resized(
                gene.tensors, gene.source, wanted, gene.architecture, depth=rule, rescale=False
            )
        except ValueError as error:
            raise ConfigError(f"sws: {error}") from None
        return {**standard_state(target, gene.shape), **made}
