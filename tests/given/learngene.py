"""A small lesson for learngenes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fedwsa.config.component import Component
from fedwsa.data.examples import Examples
from fedwsa.data.images import ImageData
from fedwsa.learngene.base import Task
from fedwsa.learngene.fit import Lesson, Recipe
from tests.given.architecture import IMAGE, component

CLASSES = 7


VIT = component("vit.vit", width=0.25, depth=6)


def lesson(count: int = 64, classes: int = CLASSES) -> Lesson:
    """Images whose class can be seen: each class is as bright as its number."""
    draw = torch.Generator().manual_seed(1)
    labels = torch.randint(0, classes, (count,), generator=draw)
    noise = torch.randint(0, 30, (count, *IMAGE), generator=draw)
    pixels = (30 * labels.view(-1, 1, 1, 1) + noise).to(torch.uint8)
    images = Examples(pixels, labels)
    return Lesson(images, ImageData(images, images, classes, (0.4,) * 3, (0.25,) * 3))


def task(model: Component, steps: int = 0, **changes: Any) -> Task:
    recipe = Recipe(steps, batch_size=16, augment="none")
    return replace(Task(model, [model], IMAGE, CLASSES, lesson(), recipe), **changes)
