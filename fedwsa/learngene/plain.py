"""Initialisations without parts: standard weights, direct training, weight selection."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fedwsa.config.component import ConfigError
from fedwsa.learngene.base import Method, Target, Task, require_kind, standard_state
from fedwsa.learngene.gene import Learngene
from fedwsa.learngene.resize import first_blocks, resized
from fedwsa.models.architecture import outline, spread_units


class Standard(Method):
    """The initialisation that the network itself comes with; nothing is learned."""

    name, serves, teaches, trains = "standard", "family", False, False

    def learn(self, task: Task) -> Learngene:
        """An empty learngene: there is nothing to learn."""
        return task.gene(self.name, task.model, {})

    def initialise(self, gene: Learngene, target: Target) -> dict[str, Tensor]:
        """Weights as the network draws them."""
        return standard_state(target, gene.shape)


class Direct(Method):
    """Training each size itself, without a teacher: what a learngene saves."""

    name, serves, teaches = "direct", "size", False

    def learn(self, task: Task) -> Learngene:
        """Train the network of ``task.model``."""
        model = task.network()
        replace(task, teacher=None).train(model, self)
        return task.gene(self.name, task.model, model.state_dict())

    def initialise(self, gene: Learngene, target: Target) -> dict[str, Tensor]:
        """The trained network; with other classes its head is new."""
        gene.require(gene.source.shapes)
        if gene.model != target.model:
            raise ConfigError("direct: the learngene is of another size; each has its own")
        made = standard_state(target, gene.shape)
        wanted = outline(target.model, gene.shape, target.classes)
        kept = resized(gene.tensors, gene.source, wanted, gene.architecture, rescale=False)
        return {**made, **kept}


class Selection(Method):
    """Weight selection: a smaller network begins as a part of the teacher.

    Of each dimension it takes units in even distances, the same ones wherever the dimension
    appears, and of the blocks the first. It makes no network that is wider or deeper.

    Source: arXiv 2311.18823. Ours: attention heads are taken whole.
    """

    name, serves, trains = "selection", "family", False

    def learn(self, task: Task) -> Learngene:
        """The teacher as it is."""
        if task.teacher is None:
            raise ConfigError("selection: needs a teacher")
        model = task.teacher_model or task.model
        return task.gene(self.name, model, task.teacher.state_dict())

    def initialise(self, gene: Learngene, target: Target) -> dict[str, Tensor]:
        """The selected weights."""
        require_kind(gene, target)
        gene.require(gene.source.shapes)
        wanted = outline(target.model, gene.shape, target.classes)
        try:
            for name, shape in wanted.shapes.items():
                there = gene.source.shapes.get(name)
                wider = there and any(w > t for w, t in zip(shape, there, strict=True))
                if wider and not name.startswith(gene.architecture.classifier):
                    raise ValueError(f"{name} of the teacher is only {tuple(there or ())}")
            kept = resized(
                gene.tensors,
                gene.source,
                wanted,
                gene.architecture,
                depth=first_blocks,
                pick=spread_units,
                rescale=False,
            )
        except ValueError as error:
            raise ConfigError(f"selection makes only parts of the teacher: {error}") from None
        return {**standard_state(target, gene.shape), **kept}
