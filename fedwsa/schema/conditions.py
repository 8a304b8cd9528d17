"""Under which conditions each client trains, drawn by (seed, client)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedwsa import seeding
from fedwsa.data.examples import batch_sizes
from fedwsa.schema.sections import Local, Optimiser


@dataclass(frozen=True)
class Conditions:
    """Under which a client trains.

    Attributes
    ----------
    lr, weight_decay
        In this round: what the client has, times the run's schedules.
    batch_size, epochs, optimiser
        The same in all rounds.
    steps : int or None
        After how many it has to stop in this round; None: when its epochs are done.
    """

    lr: float
    weight_decay: float
    batch_size: int
    epochs: int
    optimiser: Optimiser = "sgd"
    steps: int | None = None

    @classmethod
    def usual(cls, local: Local) -> Conditions:
        """Those of a client that draws nothing."""
        lr = local.lr if local.optimiser == "sgd" else local.adam_lr
        return cls(lr, local.weight_decay, local.batch_size, local.epochs, local.optimiser)

    def batches(self, samples: int) -> list[int]:
        """Sizes of the batches of a whole training on ``samples``, all epochs."""
        return batch_sizes(samples, self.batch_size) * self.epochs


def draw_conditions(local: Local, seed: int, client: int) -> Conditions:
    """A client's conditions, keyed by (seed, client)."""
    if local.alike:  # a generator would cost more than a step of a small client
        return Conditions.usual(local)
    draw = np.random.default_rng(seeding.key(seed, "conditions", client))
    # In this order: a list that is added does not change what the others give.
    factor = draw.choice(local.lr_factors)
    decay = draw.choice(local.weight_decays or [local.weight_decay])
    batch_size = draw.choice(local.batch_sizes or [local.batch_size])
    epochs = max(1, round(local.epochs * draw.choice(local.epoch_factors)))
    kinds: list[Optimiser] = local.optimisers or [local.optimiser]
    kind = kinds[int(draw.integers(len(kinds)))]
    lr = local.lr if kind == "sgd" else local.adam_lr
    return Conditions(float(lr * factor), float(decay), int(batch_size), epochs, kind)
