"""What all ways to initialise networks of many sizes have in common.

A method *learns* a learngene from a teacher and examples, once for a family of sizes, a width or a
size, and *initialises* networks from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from fedwsa.config.component import Component, ConfigError
from fedwsa.learngene.fit import Lesson, Loss, Recipe, Report, distillation, fit, plain_loss
from fedwsa.learngene.gene import Learngene
from fedwsa.learngene.resize import block_numbers
from fedwsa.learngene.resume import Resume
from fedwsa.models import InputShape, build_model
from fedwsa.models.architecture import Architecture, Outline, architecture_of, outline

Serves = Literal["family", "width", "size"]


@dataclass(frozen=True, eq=False)
class Task:
    """What a learngene is learned for, and from.

    Attributes
    ----------
    model : Component
        The auxiliary network: the largest of the family, unless the method says otherwise.
    family : sequence of Component
        The sizes that are to be initialised.
    shape, classes
        What the networks look at and tell apart.
    lesson : Lesson
        The examples.
    recipe : Recipe
        How long and how to train.
    teacher : Module or None
        None: learn from the labels alone.
    teacher_model : Component or None
        What builds the teacher; None: ``model``.
    temperature, hard : float or None
        Of :func:`fedwsa.learngene.fit.distillation`; None: the method's own.
    report, resume
        See :func:`fedwsa.learngene.fit.fit`.
    """

    model: Component
    family: Sequence[Component]
    shape: InputShape
    classes: int
    lesson: Lesson
    recipe: Recipe
    teacher: nn.Module | None = None
    teacher_model: Component | None = None
    temperature: float | None = None
    hard: float | None = None
    report: Report | None = None
    resume: Resume | None = None

    def loss(self, method: Method) -> Loss:
        """Cross entropy, and what the teacher adds to it, or puts in its place."""
        if self.teacher is None:
            return plain_loss
        temperature = method.temperature if self.temperature is None else self.temperature
        hard = method.hard if self.hard is None else self.hard
        return distillation(self.teacher, temperature, hard)

    def network(self, model: Component | None = None) -> nn.Module:
        """The auxiliary network, or another one, with standard weights."""
        built = build_model(model or self.model, self.shape, self.classes, self.lesson.seed)
        return built.to(self.lesson.device)

    def train(self, model: nn.Module, method: Method, **options: Any) -> None:
        """Train a network by the recipe, and by the method's own loss where none is given."""
        fit(
            model,
            self.lesson,
            self.recipe,
            purpose="distil",
            loss=self.loss(method),
            report=self.report,
            resume=self.resume,
            **options,
        )

    def gene(
        self, method: str, model: Component, tensors: Mapping[str, Tensor], **facts: Any
    ) -> Learngene:
        """A learngene of this task."""
        kept = {k: t.detach().cpu().clone() for k, t in tensors.items()}
        return Learngene(method, model, self.shape, self.classes, kept, facts)


@dataclass(frozen=True, eq=False)
class Target:
    """A network to initialise.

    Attributes
    ----------
    model : Component
        Its size.
    classes : int
        Those that it tells apart; another number than the learngene's gives a new head.
    lesson : Lesson or None
        A few examples, for methods that fit something to them.
    recipe : Recipe or None
        How to fit it.
    seed : int
        Keys what is drawn.
    """

    model: Component
    classes: int
    lesson: Lesson | None = None
    recipe: Recipe | None = None
    seed: int = 0
    report: Report | None = None


class Method(ABC):
    """A way to initialise.

    Attributes
    ----------
    name : str
    serves : {"family", "width", "size"}
        What one learngene serves.
    teaches : bool
        Whether learning needs a teacher.
    trains : bool
        Whether learning trains the auxiliary network.
    fits : bool
        Whether something is fitted to a few examples for each network.
    temperature, hard : float
        Its own recipe: τ, and the weight of the labels beside the teacher.
    """

    name: ClassVar[str]
    serves: ClassVar[Serves]
    teaches: bool = True
    trains: bool = True
    fits: bool = False
    temperature: ClassVar[float] = 2.0
    hard: ClassVar[float] = 1.0

    def check(self, task: Task) -> None:
        """Refuse what cannot be learned, before a teacher is trained.

        Raises
        ------
        ConfigError
        """
        for model in (task.model, *task.family):
            outline(model, task.shape, task.classes)

    @abstractmethod
    def learn(self, task: Task) -> Learngene:
        """Learn what networks are initialised from.

        Raises
        ------
        ConfigError
            If it cannot be learned for these networks.
        """

    @abstractmethod
    def initialise(self, gene: Learngene, target: Target) -> dict[str, Tensor]:
        """The state of a network.

        Raises
        ------
        ConfigError
            If the learngene does not make such a network, or is damaged.
        """


def standard_state(target: Target, shape: InputShape) -> dict[str, Tensor]:
    """The state of the network that a target names, with standard weights."""
    return build_model(target.model, shape, target.classes, target.seed).state_dict()


def require_kind(gene: Learngene, target: Target) -> None:
    """Refuse a network of another kind than the learngene's."""
    if gene.model.target != target.model.target:
        raise ConfigError(
            f"the learngene is of {gene.model.name}, and cannot initialise a {target.model.name}"
        )


def same_width(gene: Learngene, target: Target) -> None:
    """Refuse a network that differs from the learngene's in more than depth.

    Raises
    ------
    ConfigError
    """
    require_kind(gene, target)
    if gene.model.replace(depth=1) != target.model.replace(depth=1):
        raise ConfigError(
            f"{gene.method} makes networks of other depths only; the learngene is of "
            f"{_arguments(gene.model)}, and {_arguments(target.model)} is wanted"
        )


def _arguments(model: Component) -> str:
    return ", ".join(f"{k}={v}" for k, v in model.arguments.items() if k != "depth")


def blocks_of(task: Task) -> tuple[str, list[int]]:
    """The sequence of blocks of a task's auxiliary network, see :func:`sequence_of`."""
    known = architecture_of(task.model)
    return sequence_of(outline(task.model, task.shape, task.classes), known)


def sequence_of(source: Outline, architecture: Architecture) -> tuple[str, list[int]]:
    """The only sequence of exchangeable blocks of a network, and their numbers.

    Raises
    ------
    ConfigError
        If there is none, or several.
    """
    found = block_numbers(source.shapes, architecture)
    if len(found) != 1:
        raise ConfigError(
            f"needs a network with one sequence of equal blocks, as vit; this one has {len(found)}"
        )
    return next(iter(found.items()))


def frozen(model: nn.Module) -> nn.Module:
    """A network that is not trained any more, in place."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()
