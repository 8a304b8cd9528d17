"""A model that a client moves beside the one in training, and keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from fedwsa.algorithms.objective import LocalRun, Objective, State, TrainedOn, Weights, trainable
from fedwsa.models.batch_norm import reestimate
from fedwsa.wire.content import Content

Groups = dict[str, dict[str, Tensor]]
"""Tensors by name, in groups."""


class OwnModel(Objective):
    """A model of the client's own, which it keeps between rounds and is evaluated with.

    It begins as the first model that the client receives. A subclass moves it, in
    :meth:`~fedwsa.algorithms.objective.Objective.descend`.

    Attributes
    ----------
    settings : str
        Name of the record with what the server tells, and of what is kept.
    local : LocalRun
        The training that it is a part of.
    own : dict of dict of Tensor
        ``model``, ``received`` and ``velocity``, each by the names of the weights, and what a
        subclass puts beside them.
    """

    settings: ClassVar[str]

    @torch.no_grad()
    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        if local is None:
            raise ValueError(f"{self.settings} needs the client's rate and state")
        self.local, kept = local, local.state.get(self.settings, {})
        received = {name: w.detach().clone() for name, w in trainable(model).items()}
        self.own: Groups = {
            "received": received,
            "model": {name: kept.get(name, w).to(w).clone() for name, w in received.items()},
            "velocity": {name: torch.zeros_like(w) for name, w in received.items()},
        }
        self._stack: Groups | None = None

    @classmethod
    def evaluated_with(cls, content: Content, state: State) -> dict[str, Tensor]:
        """The client's own model; for one that has none yet, the received one."""
        return dict(state.get(cls.settings, {}))

    @classmethod
    def settle(cls, model: nn.Module, content: Content, state: State, samples: TrainedOn) -> None:
        """Measure BatchNorm's statistics anew: those that travel are of the shared model."""
        if cls.settings in state:
            reestimate(model, (inputs for inputs, _ in samples.batches()))

    @classmethod
    def stacked(cls, objectives: Sequence[Self]) -> Groups:
        """What A clients have of their own, ``(A, …)``: what is changed there is changed in each.

        Parameters
        ----------
        objectives
            Of the clients that are in training, in their order; those that end first come last.
        """
        first = objectives[0]
        if first._stack is None:
            first._stack = {
                group: {
                    name: torch.stack([one.own[group][name] for one in objectives]) for name in of
                }
                for group, of in first.own.items()
            }
            for k, one in enumerate(objectives):
                one.own = {
                    group: {name: of_all[k] for name, of_all in of.items()}
                    for group, of in first._stack.items()
                }
        return {
            group: {name: of_all[: len(objectives)] for name, of_all in of.items()}
            for group, of in first._stack.items()
        }

    @classmethod
    def move(cls, objectives: Sequence[Self], gradients: Mapping[str, Tensor]) -> None:
        """A step of each client's own model, by SGD with the rate, momentum and decay of its run.

        Parameters
        ----------
        gradients
            By name, ``(A, …)``.
        """
        own = cls.stacked(objectives)
        rates, decays = (
            [getattr(one.local, of) for one in objectives] for of in ("lr", "weight_decay")
        )
        for name, gradient in gradients.items():
            weight, velocity = own["model"][name], own["velocity"][name]
            velocity.mul_(objectives[0].local.momentum)
            velocity.add_(gradient + per_client(decays, weight) * weight)
            weight.sub_(per_client(rates, weight) * velocity)

    @torch.no_grad()
    def end(self) -> dict[str, float | list[float]]:
        """Keep the model."""
        model = {name: weight.clone() for name, weight in self.own["model"].items()}
        self.local.state[self.settings] = model
        return {}


def per_client(values: Sequence[float], like: Tensor) -> Tensor:
    """A number of each client, ``(A, 1, …)``, for tensors ``(A, …)`` of theirs."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(
        -1, *[1] * (like.dim() - 1)
    )
