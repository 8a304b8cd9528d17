"""From a configuration to a learngene and to initialised networks: teacher, method, facts."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from fedwsa.config.component import Component, ConfigError, build
from fedwsa.data.evaluation import evaluate, measure_statistics
from fedwsa.data.keys import of_arguments, of_component
from fedwsa.learngene.base import Method, Target, Task
from fedwsa.learngene.fit import Lesson, Recipe, Report, fit, plain_loss
from fedwsa.learngene.gene import Learngene
from fedwsa.learngene.resume import Resume
from fedwsa.learngene.settings import Init, Pretraining
from fedwsa.models import InputShape, build_model
from fedwsa.models.files import load_network
from fedwsa.models.flops import forward_flops, step_flops

Watch = Callable[[str, int], Report]
"""(what is trained, steps) → the report to call after each step."""


def no_watch(name: str, steps: int) -> Report:
    """Show nothing."""
    return lambda step, loss: None


def build_method(init: Component) -> Method:
    """The method that the configuration names.

    Raises
    ------
    ConfigError
        If the path is no method's, or an argument is wrong.
    """
    method = build(init, "init")
    if not isinstance(method, Method):
        raise ConfigError(f"init._target_: {init.target} is no method of fedwsa.learngene")
    return method


@dataclass(frozen=True, eq=False)
class School:
    """Everything that learning and initialising need.

    Attributes
    ----------
    init, pretraining
        Of the configuration.
    model : Component
        Teacher and auxiliary network.
    family : sequence of Component
        The sizes to be made.
    lesson : Lesson
        The public examples.
    source : str
        Names the data set, for the facts.
    augment : str
        How inputs are changed at random, an option of ``dataset.augment``.
    watch : callable
        Shows progress.
    """

    init: Init
    pretraining: Pretraining
    model: Component
    family: Sequence[Component]
    lesson: Lesson
    source: str
    augment: str = "none"
    watch: Watch = no_watch

    @property
    def shape(self) -> InputShape:
        """Shape of an example."""
        return self.lesson.data.shape

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.lesson.data.classes

    def recipe(self, part: Literal["teach", "learn", "fit"]) -> Recipe:
        """The recipe that a section of the configuration describes."""
        training = getattr(self.pretraining, part)
        return Recipe(**training.model_dump(), augment=self.augment)

    def key(self, purpose: str) -> str:
        """A name for the training that these settings, and the files they name, describe."""
        facts: list[Any] = [purpose, self.source, self.lesson.seed, self.data_hash(), self.augment]
        facts += [m.model_dump(by_alias=True) for m in (self.model, *self.family)]
        facts += [self.init.method.model_dump(by_alias=True), self.pretraining.model_dump()]
        made_by = [of_component(c) for c in (self.model, *self.family, self.init.method)]
        made_by.append(of_arguments(self.pretraining.model_dump()))  # the teacher's file
        facts += [secrets.token_hex() if known is None else known for known in made_by]
        return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()

    def data_hash(self) -> str:
        """SHA-256 of the public examples and their labels."""
        digest = hashlib.sha256(self.lesson.examples.inputs.numpy().tobytes())
        digest.update(self.lesson.examples.labels.numpy().tobytes())
        return digest.hexdigest()

    def teacher(self, resume: Resume | None = None) -> tuple[nn.Module, Component]:
        """The teacher and what builds it: read from a file, or trained on the public examples.

        Raises
        ------
        ConfigError
            If the file cannot be used.
        """
        if self.pretraining.teacher is not None:
            saved = load_network(Path(self.pretraining.teacher), [self.model.target])
            if (saved.shape, saved.classes) != (self.shape, self.classes):
                raise ConfigError(
                    f"pretraining.teacher: {saved.model.name} looks at {saved.shape} and "
                    f"tells {saved.classes} classes apart, not {self.shape} and {self.classes}"
                )
            return saved.module.to(self.lesson.device), saved.model
        recipe = self.recipe("teach")
        model = build_model(self.model, self.shape, self.classes, self.lesson.seed)
        model.to(self.lesson.device)
        fit(
            model,
            self.lesson,
            recipe,
            purpose="teach",
            loss=plain_loss,
            report=self.watch("teacher", recipe.steps),
            resume=resume,
        )
        return model, self.model

    def learn(self, file: Path | None = None) -> Learngene:
        """Learn a learngene, with the facts that a person may want to know.

        Parameters
        ----------
        file
            Where to write it. Two files beside it keep an interrupted training, and are gone at
            the end.

        Raises
        ------
        ConfigError
            See :meth:`fedwsa.learngene.base.Method.learn`.
        """
        method, recipe = build_method(self.init.method), self.recipe("learn")
        kept = [
            Resume(file.with_suffix(f".{part}.part"), self.key(part))
            for part in ("teach", "learn")
            if file is not None
        ]
        task = Task(
            self.model,
            self.family,
            self.shape,
            self.classes,
            self.lesson,
            recipe,
            temperature=self.pretraining.temperature,
            hard=self.pretraining.hard,
            resume=kept[1] if kept else None,
        )
        method.check(task)  # before a teacher is trained
        if method.teaches:
            teacher, model = self.teacher(kept[0] if kept else None)
            task = replace(task, teacher=teacher, teacher_model=model)
        if method.trains:
            task = replace(task, report=self.watch(method.name, recipe.steps))
        gene = method.learn(task)
        gene.facts.update(self._facts(task, method.trains))
        if file is not None:
            gene.save(file)
        for state in kept:
            state.forget()
        return gene

    def _facts(self, task: Task, trains: bool) -> dict[str, Any]:
        test, teacher = self.lesson.data.test, task.teacher
        facts: dict[str, Any] = {
            "seed": self.lesson.seed,
            "data": {
                "source": self.source,
                "examples": len(self.lesson.examples),
                "hash": self.data_hash(),
            },
            "pretraining": self.pretraining.model_dump(),
            "versions": {name: version(name) for name in ("fedwsa", "torch", "safetensors")},
        }
        size, shape = task.recipe.batch_size, self.shape
        step = step_flops(task.network(), shape, size)
        facts["flops"] = {"learn": step * task.recipe.steps * trains}
        if teacher is not None and task.teacher_model is not None:
            forward = forward_flops(teacher, shape, size)
            facts["flops"]["learn"] += forward * task.recipe.steps * trains
            data, device = self.lesson.data, self.lesson.device
            measure_statistics(teacher, self.lesson.examples.inputs, data.prepare, device)
            score = evaluate(teacher, test, data, device, 512)
            facts["teacher"] = {
                "model": task.teacher_model.model_dump(by_alias=True),
                "file": self.pretraining.teacher,
                "test_accuracy": score.accuracy,
            }
            if self.pretraining.teacher is None:
                steps = self.pretraining.teach.steps
                facts["flops"]["teacher"] = step * steps
        return facts

    def make(self, gene: Learngene, model: Component) -> dict[str, Tensor]:
        """The state of a network that the learngene initialises.

        Raises
        ------
        ConfigError
            If the file is another method's, or it does not make such a network.
        """
        method = build_method(self.init.method)
        if gene.method != method.name:
            raise ConfigError(
                f"init.file: the learngene is {gene.method}'s, and init is {method.name}"
            )
        if gene.shape != self.shape:
            raise ConfigError(
                f"init.file: the learngene is for inputs of {gene.shape}, not {self.shape}"
            )
        recipe = self.recipe("fit")
        report = self.watch(f"{method.name}, {_described(model)}", recipe.steps)
        lesson = self.lesson if len(self.lesson.examples) else None
        target = Target(model, self.classes, lesson, recipe, self.lesson.seed, report)
        return method.initialise(gene, target)


def _described(model: Component) -> str:
    """The size of a network in a few words."""
    return ", ".join(
        f"{k} {model.arguments[k]:g}" for k in ("width", "depth") if k in model.arguments
    )
