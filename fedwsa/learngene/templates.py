"""WAVE as a method: templates from an auxiliary network, networks of any size from templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from fedwsa import seeding
from fedwsa.config.component import Component, ConfigError
from fedwsa.learngene import kronecker, wave
from fedwsa.learngene.base import Method, Target, Task, require_kind
from fedwsa.learngene.fit import fit
from fedwsa.learngene.gene import Learngene
from fedwsa.learngene.resize import assign, resized, resized_scalers
from fedwsa.models import build_model
from fedwsa.models.architecture import Outline, architecture_of, outline

Start = Literal["resized", "random"]
Ablated = Literal["templates", "scalers"]


class Wave(Method):
    """Templates for networks of any width and depth; see :mod:`fedwsa.learngene.wave`.

    Source: arXiv 2406.17503. Ours: the sizes and the number of the templates; the shell is
    learned with them and resized (:func:`fedwsa.learngene.resize.resized`); scalers start as the
    auxiliary network's, resized in whole blocks.

    Parameters
    ----------
    count
        N, templates of each weight group.
    start
        What scalers start from: ``resized`` those of the auxiliary network, or ``random`` with
        the variance of the standard initialisation.
    divide
        Templates are the n-th part of the largest that make all sizes, along each side: fewer
        numbers are stored, and each network has more scalers.
    ablate
        What is left out, to see what it brings: ``templates`` stay as they are drawn, ``scalers``
        as they start.
    """

    name, serves = "wave", "family"

    def __init__(
        self,
        *,
        count: PositiveInt = 16,
        start: Start = "resized",
        divide: PositiveInt = 1,
        ablate: Ablated | None = None,
    ) -> None:
        self.count, self.start, self.divide = count, start, divide
        self.teaches = self.trains = ablate != "templates"
        self.fits = ablate != "scalers"

    def check(self, task: Task) -> None:
        """Refuse a family that no templates can make."""
        self._shapes(task)

    def _shapes(self, task: Task) -> dict[str, tuple[int, ...]]:
        family = [outline(m, task.shape, task.classes) for m in (task.model, *task.family)]
        try:
            return wave.template_shapes(family, architecture_of(task.model), self.divide)
        except ValueError as error:
            raise ConfigError(f"sizes: {error}") from None

    def learn(self, task: Task) -> Learngene:
        """Train an auxiliary network whose weights are made from templates."""
        known, model, shapes = architecture_of(task.model), task.network().cpu(), self._shapes(task)
        random = seeding.generator(task.lesson.seed, "templates")
        templates = wave.random_templates(model, known, shapes, self.count, random)
        variances = _variances(model, known.group)
        wave.attach(model, known, templates)
        wave.random_scalers(model, variances, random)
        model.to(task.lesson.device)
        # Decay would shrink S and T, which only matter as a product.
        shared = [*wave.templates_of(model, known).values(), *wave.scalers_of(model).values()]
        if self.trains:
            task.train(model, self, exempt=shared)
        sizes = {group: list(shape) for group, shape in shapes.items()}
        return task.gene(
            self.name,
            task.model,
            wave.state(model, known),
            templates={g: [self.count, *s] for g, s in sizes.items() if g in templates},
        )

    def initialise(self, gene: Learngene, target: Target) -> dict[str, Tensor]:
        """Make a network: shell and scalers resized, scalers fitted to a few examples.

        Without examples the scalers stay as they start.
        """
        model = self.network(gene, target)
        wave.materialise(model)
        return model.cpu().state_dict()

    def network(self, gene: Learngene, target: Target) -> nn.Module:
        """The network with its templates, which are frozen, and fitted scalers."""
        require_kind(gene, target)
        gene.require(expected(gene))
        _require_alike(gene, target)
        known = gene.architecture
        model = build_model(target.model, gene.shape, target.classes, target.seed)
        variances = _variances(model, known.group)
        wanted = outline(target.model, gene.shape, target.classes)
        templates = {k: t.clone() for k, t in wave.templates_in(gene.tensors).items()}
        try:
            wave.attach(model, known, templates)
        except ValueError as error:
            hint = nearest(gene, target.model)
            raise ConfigError(f"these templates cannot make it: {error}{hint}") from None
        shell = {k: t for k, t in gene.tensors.items() if k in gene.source.shapes}
        assign(model, resized(shell, gene.source, wanted, known))
        if self.start == "random":
            random = seeding.generator(target.seed, "scalers")
            wave.random_scalers(model, variances, random)
        else:
            kept = {
                k.removeprefix(wave.SCALERS): t
                for k, t in gene.tensors.items()
                if k.startswith(wave.SCALERS)
            }
            scalers = resized_scalers(kept, gene.source, wanted, templates, known)
            with torch.no_grad():
                for layer, parameter in wave.scalers_of(model).items():
                    parameter.copy_(scalers[layer])
        self._fit(model, gene, target)
        return model

    def _fit(self, model: nn.Module, gene: Learngene, target: Target) -> None:
        """Train the scalers, and the head where it is new, with everything else frozen."""
        if target.lesson is None or target.recipe is None or not target.recipe.steps:
            return
        if not self.fits:
            return
        model.to(target.lesson.device)
        chosen = list(wave.scalers_of(model).values())
        if target.classes != gene.classes:
            head = gene.architecture.classifier
            chosen += [p for k, p in model.named_parameters() if k.startswith(head)]
        if not chosen:  # so shallow that templates make nothing of it
            return
        fit(
            model,
            target.lesson,
            target.recipe,
            purpose="scalers",
            parameters=chosen,
            exempt=chosen,
            report=target.report,
        )


def _require_alike(gene: Learngene, target: Target) -> None:
    """Refuse a network that differs from the learngene's in more than width and depth.

    Raises
    ------
    ConfigError
    """
    there, wanted = gene.model.arguments, target.model.arguments
    for key in there.keys() | wanted.keys():
        if key not in ("width", "depth", "heads") and there.get(key) != wanted.get(key):
            raise ConfigError(
                f"the learngene is of {key}={there.get(key)}, and {key}={wanted.get(key)} is "
                "wanted: only width and depth may differ"
            )
    made = outline(target.model, gene.shape, target.classes)
    units = [{a.inner for of in o.axes.values() for a in of.values()} for o in (gene.source, made)]
    if made.axes.keys() & gene.source.axes.keys() and units[0] != units[1]:
        heads = " and ".join(", ".join(map(str, sorted(u))) for u in units)
        raise ConfigError(
            f"attention heads (or flattened channels) have {heads} entries: they must be the same "
            "in all sizes; leave heads at null"
        )


def _variances(model: nn.Module, group: object) -> dict[str, float]:
    """Layer → variance of its weight, of those that templates will make."""
    assert callable(group)
    return {
        name.removesuffix(".weight"): tensor.var(correction=0).item()
        for name, tensor in model.state_dict().items()
        if group(name) is not None
    }


def expected(gene: Learngene) -> dict[str, Sequence[int]]:
    """Names and shapes that the tensors of a learngene must have.

    Raises
    ------
    ConfigError
        If its metadata do not say.
    """
    source, known = gene.source, gene.architecture
    templates = gene.facts.get("templates")
    if not isinstance(templates, dict):
        raise ConfigError("the wave learngene does not say the shapes of its templates")
    shapes: dict[str, Sequence[int]] = {wave.TEMPLATES + g: s for g, s in templates.items()}
    for name, shape in source.shapes.items():
        group = known.group(name)
        if group is None:
            shapes[name] = shape
            continue
        if group not in templates:
            raise ConfigError(f"the wave learngene has no templates for {group}")
        try:
            a, b = kronecker.grid(shape, templates[group][1:])
        except ValueError as error:
            raise ConfigError(f"the wave learngene is damaged: {error}") from None
        shapes[wave.SCALERS + name.removesuffix(".weight")] = (templates[group][0], a, b)
    return shapes


def nearest(gene: Learngene, model: Component) -> str:
    """The widths nearest to a network's that the templates can make, in words."""
    wanted = model.arguments.get("width")
    if not isinstance(wanted, int | float):
        return ""
    source, templates = gene.model.arguments["width"], gene.facts["templates"]
    parts = max(
        source_rows // templates[group][1]
        for name, shape in gene.source.shapes.items()
        if (group := gene.architecture.group(name)) and (source_rows := shape[0])
    )
    found = []
    for i in range(1, 4 * parts + 1):
        width = source * i / parts
        sized = model.replace(width=width)
        if _makes(templates, sized, gene):
            found.append(width)
    below = [w for w in found if w < wanted][-1:]
    above = [w for w in found if w > wanted][:1]
    near = " and ".join(f"{w:g}" for w in below + above)
    return f"; the nearest widths that they can make: {near}" if near else ""


def _makes(templates: Mapping[str, Sequence[int]], model: Component, gene: Learngene) -> bool:
    try:
        made: Outline = outline(model, gene.shape, gene.classes)
        for name, shape in made.shapes.items():
            if (group := gene.architecture.group(name)) is not None:
                kronecker.grid(shape, templates[group][1:])
    except (ConfigError, ValueError, KeyError):
        return False
    return True
