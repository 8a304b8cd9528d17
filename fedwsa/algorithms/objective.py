"""Objectives: what a client does beside the task loss, the client halves of algorithms.

Each is made where a message has the instructions for it, which its strategy sends. An objective
knows no Flower: the content of a message reaches it as a mapping of records, each a mapping of
keys; arrays are tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from fedwsa.data.examples import batch_sizes
from fedwsa.models.nested import Nested
from fedwsa.wire.content import Content

Weights = nn.Module | Mapping[str, Tensor]
"""The weights in training: a model, or tensors that have their ``.grad`` by name."""


State = dict[str, dict[str, Tensor]]
"""What a client keeps between rounds: name → tensors."""


Batch = tuple[Tensor, Tensor]
"""Inputs and labels."""


@dataclass(frozen=True, eq=False)
class TrainedOn:
    """The samples of a training.

    Attributes
    ----------
    inputs, labels : Tensor
        See :class:`fedwsa.data.examples.Examples`.
    classes : int
        How many there are, whether the client has them or not.
    prepare : callable
        Makes the input of the model from inputs as stored, not augmented.
    generator : callable
        Purpose → what draws for it, keyed by (seed, purpose, round, client).
    """

    inputs: Tensor
    labels: Tensor
    classes: int
    prepare: Callable[[Tensor], Tensor]
    generator: Callable[[str], torch.Generator]

    def batches(self, size: int = 256, order: Tensor | None = None) -> Iterator[Batch]:
        """Prepared inputs and labels, in pieces of about ``size``, none of which is one sample.

        Parameters
        ----------
        order
            Which samples, and in which order; None: all as they lie.
        """
        inputs, labels = self.inputs, self.labels
        if order is not None:
            inputs, labels = inputs[order], labels[order]
        start = 0
        for count in batch_sizes(len(labels), size) if len(labels) else []:
            some = slice(start, start + count)
            yield self.prepare(inputs[some]), labels[some]
            start += count


@dataclass
class LocalRun:
    """What an objective may know of the training that it is a part of.

    Attributes
    ----------
    lr, momentum, weight_decay : float
        Of the client's SGD.
    state : dict
        What the client keeps between rounds: name → tensors. An objective reads the entry of
        its name, and replaces it in :meth:`Objective.share` or :meth:`Objective.end`.
    examples : int
        How many samples the client trains on.
    pulls : list of callable
        Each returns a gradient by name, at the weights as they are, that an objective adds and
        that is not of the client's loss: SCAFFOLD and FedDyn keep it out of their variates. An
        objective that adds one puts its function here when it is made.
    samples : TrainedOn, optional
        What the client trains on.
    trained : dict
        What travels of the trained model, by name, once the training has ended.
    shared : dict
        What is sent of it, once all have had their word (:meth:`Objective.share`).
    within : callable, optional
        Size → a network of that size whose weights are those of the model that it has room for
        (:class:`fedwsa.models.nested.Nested`).
    """

    lr: float
    momentum: float = 0.0
    state: State = field(default_factory=dict)
    examples: int = 0
    pulls: list[Callable[[], dict[str, Tensor]]] = field(default_factory=list)
    samples: TrainedOn | None = None
    trained: dict[str, Tensor] = field(default_factory=dict)
    weight_decay: float = 0.0
    shared: dict[str, Tensor] = field(default_factory=dict)
    within: Callable[[str], Nested] | None = None

    def pull(self, weights: Mapping[str, Tensor]) -> list[Tensor] | None:
        """The sum of all pulls on the weights, zeros where there is none; None without any."""
        if not self.pulls:
            return None
        found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for each in self.pulls:
            for name, gradient in each().items():
                found[name] += gradient
        return list(found.values())


Others = Mapping[str, Mapping[str, Tensor]]
"""Weights of other networks, by a name for each."""


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """A forward pass of a training, as the loss of an objective sees it.

    Attributes
    ----------
    inputs : Tensor
        Of the model: ``(N, …)``.
    labels : Tensor
        ``(N,)``, of a sequence ``(N, L)``.
    represented : callable
        Returns what went into the linear layer that the model called last, half precision as
        single: ``(N, …, features)``.
    represented_by : callable
        The same, without a gradient and in evaluation mode, by the weights that
        :meth:`Objective.others` has under a name.
    logits : Tensor
        What the model has answered, as the task loss sees it: ``(N, C, …)``.
    masked : callable
        Makes of other logits what the task loss would see of them: with ``local.mask_absent`` the
        classes that the client lacks are zero.
    """

    inputs: Tensor
    labels: Tensor
    represented: Callable[[], Tensor]
    represented_by: Callable[[str], Tensor]
    logits: Tensor
    masked: Callable[[Tensor], Tensor]


GradientAt = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""The gradient of the task loss of A clients' batches at other weights of theirs, by name, all of
them ``(A, …)``; buffers stay as they are."""


@dataclass(frozen=True)
class Phase:
    """One of the trainings of a round, each of which goes on where the one before has ended.

    Attributes
    ----------
    trains : callable, optional
        Tells by its name whether a weight is trained, or stands still. None: all are trained.
    epochs : int, optional
        None: as many as the client's.
    """

    trains: Callable[[str], bool] | None = None
    epochs: int | None = None


class Objective:
    """The client half of an algorithm: what it does before, in and after a local training.

    Where a message asks for it, one is made for each training, from the model that holds the
    weights to begin with, the content of the message with the server's instructions, and the
    circumstances. All hooks but the constructor do nothing unless a subclass has its own; they
    are called in this order::

        asked, begin_with
            __init__, during, phases, others, loss, descend and add_gradient at each step, after
                share, end, arrays, records

    and before an evaluation ``asked``, ``evaluated_with`` and ``settle``.
    """

    stackable: ClassVar[bool] = True
    """Whether tensors are enough, without a model to call: several clients may then be trained
    at once, each objective on its client's part of stacked weights. One with a loss is not,
    whatever it says, unless it says what the loss looks at (:func:`stacks`)."""

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        name = type(self).__name__
        raise NotImplementedError(f"{name} needs a constructor that takes (model, content, local)")

    settings: ClassVar[str] = ""
    """The record with its settings, by which a message asks for it; empty: every message does."""

    @classmethod
    def asked(cls, content: Content) -> bool:
        """Whether a message asks for it."""
        return not cls.settings or cls.settings in content

    @classmethod
    def begin_with(cls, content: Content, state: State) -> dict[str, Tensor]:
        """Tensors that the model begins with beside, or instead of, those that were sent."""
        return {}

    @classmethod
    def evaluated_with(cls, content: Content, state: State) -> dict[str, Tensor]:
        """The same before an evaluation: of the model that is the client's own."""
        return cls.begin_with(content, state)

    @classmethod
    def settle(cls, model: nn.Module, content: Content, state: State, samples: TrainedOn) -> None:
        """Change a model before its evaluation by what the client trains on."""

    @classmethod
    def phases(cls, content: Content) -> Sequence[Phase]:
        """The trainings of which a round consists; none: one, of the whole model."""
        return ()

    @classmethod
    def during(cls, model: nn.Module, content: Content) -> AbstractContextManager[object]:
        """What surrounds the training of a model, of all clients that train it at once.

        When it ends, the model is as it was.
        """
        return nullcontext()

    def loss(self, seen: ForwardPass) -> Tensor:
        """What is added to the task loss of a batch that the model has just answered.

        For what has no closed form. The mean over all samples is added.

        Returns
        -------
        Tensor
            Of each sample, which must not depend on the others: ``(N,)``, or ``(N, …)``.
        """
        raise NotImplementedError

    def others(self) -> Others | None:
        """Weights of other networks that the loss looks at, by a name for each.

        Asked once, before the first step. One that has this hook can be stacked: its loss is then
        that of one client's objective, called for all of them, and may use nothing of it but what
        the message told all.

        Returns
        -------
        dict of dict of Tensor, or None
            By the names of the model's parameters and buffers; those that are missing are the
            model's own at the beginning. None: this client's loss is zero, and not asked for.
        """
        return {}

    @classmethod
    def descend(
        cls,
        objectives: Sequence[Self],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        gradient_at: GradientAt,
    ) -> None:
        """Look at the loss of a step's batch from elsewhere; before any :meth:`add_gradient`.

        Where another model moves beside that in training, or the gradients are replaced by those
        that the algorithm follows.

        Parameters
        ----------
        objectives
            Of this kind, of A clients that train at once; of one that trains alone, its own.
        weights, gradients
            By name, ``(A, …)``; gradients may be changed in place.
        gradient_at
            For other weights of the same names.
        """

    def add_gradient(self) -> None:
        """Add to ``.grad`` of the weights, between ``backward()`` and the optimiser's step."""

    @classmethod
    def add_gradients(
        cls,
        objectives: Sequence[Objective],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
    ) -> None:
        """As :meth:`add_gradient` of each of A clients that train at once.

        Where one call does it for all, that is faster.

        Parameters
        ----------
        objectives
            Of this kind, made for the clients in their order; the message told all the same.
        weights, gradients
            By name, stacked: ``(A, …)``.
        """
        for objective in objectives:
            objective.add_gradient()

    def after(self, model: nn.Module) -> None:
        """Look at the trained model as a whole."""

    @classmethod
    def answers_beside(cls, content: Content) -> bool:
        """Whether more is sent than trained weights and metrics, or not all of the weights.

        Clients that train at once answer in one piece where nothing of the kind is.
        """
        return any(overrides(cls, hook) for hook in ("share", "arrays", "records"))

    def share(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is sent of the trained weights; the rest stays with the client."""
        return weights

    def end(self) -> dict[str, float | list[float]]:
        """Return the metrics to report after the last step."""
        return {}

    def arrays(self) -> dict[str, Tensor]:
        """Tensors to send among the model's arrays, by name; after :meth:`end`."""
        return {}

    def records(self) -> dict[str, dict[str, Tensor]]:
        """Tensors to send beside the model, by the name of their record; after :meth:`end`."""
        return {}


def overrides(kind: type[Objective], hook: str) -> bool:
    """Whether a kind of objective has a hook of its own."""
    ours, theirs = (getattr(of, hook) for of in (Objective, kind))
    return getattr(theirs, "__func__", theirs) is not getattr(ours, "__func__", ours)


def stacks(kind: type[Objective]) -> bool:
    """Whether clients may be trained at once with it."""
    return kind.stackable and (not overrides(kind, "loss") or overrides(kind, "others"))


def trainable(model: Weights) -> dict[str, Tensor]:
    """The tensors that are trained, by name."""
    if isinstance(model, nn.Module):
        return {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(model)


def gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of the weights, zeros where the task loss gave none."""
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    return [weight.grad for weight in weights if weight.grad is not None]
