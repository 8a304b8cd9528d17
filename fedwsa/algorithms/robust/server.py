"""Strategies that average updates robustly."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import ClassVar, Unpack

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.robust.rules import (
    clipped_around,
    conquered,
    geometric_median,
    trusted,
)
from fedwsa.algorithms.run_facts import RunFacts, require_bearable
from fedwsa.algorithms.sizes.server import Weighted
from fedwsa.algorithms.traits import Traits
from fedwsa.scope.weight_scope import choose
from fedwsa.wire import messages

Root = Callable[[Mapping[str, Tensor], int], Mapping[str, Tensor]]
"""A model and the number of a round → the model trained on what the server has."""


class RobustAverage(FedAvg):
    """Federated averaging with a rule for the updates; metrics are averaged as usual.

    What is no floating-point number, and clients count, is averaged as usual too.

    Parameters
    ----------
    weighted : {"examples", "clients"}
        Whether a client counts by its examples or once; liars may claim any number.
    sampling
        As for Flower's FedAvg.
    """

    traits: ClassVar[Traits] = Traits(transient=("_received", "_names"), requires=True)

    def __init__(self, *, weighted: Weighted, **sampling: Unpack[Sampling]) -> None:
        super().__init__(**sampling)
        self.weighted = choose(Weighted, weighted, "weighted")
        self._received: dict[str, Tensor] = {}
        self._names: list[str] = []  # in the order of an update's entries

    @abstractmethod
    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        """The update ``(D,)`` of those of the clients, ``(K, D)`` with weights ``(K,)``."""

    def bears(self, cohort: int) -> int:
        """How many liars of a cohort the rule is made for: fewer than half."""
        return (cohort - 1) // 2

    def require(self, run: RunFacts) -> None:
        """Refuse more attackers than it bears.

        Raises
        ------
        ValueError
            Says how many these are.
        """
        require_bearable(type(self).__name__, self.bears(run.cohort), run)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As usual; what was sent is what updates count from."""
        self._received = messages.to_tensors(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the updates."""
        given = [reply for reply in replies if reply.has_content()]
        averaged, metrics = super().aggregate_train(server_round, given)
        if averaged is None:
            return None, metrics
        new = messages.to_tensors(averaged)
        names = [name for name, tensor in new.items() if tensor.is_floating_point()]
        trained = [self._flat(reply, names) for reply in given]
        before = torch.cat([self._received[name].flatten().float() for name in names])
        self._names = names
        update = self.combine(torch.stack(trained) - before, self._weights(given))
        pieces = torch.split(before + update, [new[name].numel() for name in names])
        for name, piece in zip(names, pieces, strict=True):
            new[name] = piece.view(new[name].shape).to(new[name].dtype)
        return messages.to_arrays(new), metrics

    def _flat(self, reply: Message, names: list[str]) -> Tensor:
        arrays = messages.model_arrays(reply.content)
        assert arrays is not None  # Flower has looked
        tensors = messages.to_tensors(arrays)
        return torch.cat([tensors[name].flatten().float() for name in names])

    def _weights(self, replies: list[Message]) -> Tensor:
        if self.weighted == "clients":
            return torch.ones(len(replies))
        found = messages.reply_metrics(replies)
        return torch.tensor([messages.number(m, self.weighted_by_key) for m in found])


class GeometricMedian(RobustAverage):
    """RFA: the geometric median of the updates.

    Parameters
    ----------
    smoothing, iterations
        See :func:`fedwsa.algorithms.robust.rules.geometric_median`.
    weighted, sampling
        See :class:`RobustAverage`.

    Notes
    -----
    Source: arXiv 1912.13445.
    """

    traits = RobustAverage.traits

    def __init__(
        self,
        *,
        smoothing: float,
        iterations: int,
        weighted: Weighted,
        **sampling: Unpack[Sampling],
    ) -> None:
        super().__init__(weighted=weighted, **sampling)
        if not (smoothing > 0 and iterations > 0):
            raise ValueError("smoothing and iterations must be above 0")
        self.smoothing, self.iterations = smoothing, iterations

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        """The geometric median."""
        return geometric_median(updates, weights, self.smoothing, self.iterations)


class CentredClipping(RobustAverage):
    """The mean of updates that are clipped around the last round's.

    Parameters
    ----------
    radius
        τ: how far from the centre an update may be, in the norm of all weights. None: the median
        distance of the cohort's updates from it, in each round (ours; the paper tunes τ).
    iterations
        How often the mean becomes the next centre.
    weighted, sampling
        See :class:`RobustAverage`.

    Notes
    -----
    Source: arXiv 2012.10333. The momentum that clients keep there is ``local.momentum`` here, and
    ends with a round.
    """

    traits = RobustAverage.traits

    def __init__(
        self,
        *,
        radius: float | None,
        iterations: int,
        weighted: Weighted,
        **sampling: Unpack[Sampling],
    ) -> None:
        super().__init__(weighted=weighted, **sampling)
        if not ((radius is None or radius > 0) and iterations > 0):
            raise ValueError("radius and iterations must be above 0")
        self.radius, self.iterations = radius, iterations
        self.centre: Tensor | None = None

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        """The clipped mean, which is the next round's centre."""
        centre = torch.zeros_like(updates[0]) if self.centre is None else self.centre
        radius = self.radius or float((updates - centre).norm(dim=1).median())
        self.centre = clipped_around(updates, weights, centre, radius, self.iterations)
        return self.centre


class FLTrust(RobustAverage):
    """Updates count by their cosine with one that the server makes itself, and are as long as that.

    The server trains on the public examples (``init.public``) as a client would; it bears any
    number of liars below all.

    Parameters
    ----------
    root
        Model and round → the model that the server has trained.
    sampling
        As for Flower's FedAvg; clients count by their trust alone.

    Raises
    ------
    ValueError
        If there are no public examples.

    Notes
    -----
    Source: arXiv 2012.13995.
    """

    traits = replace(RobustAverage.traits, wants=("root",))

    def __init__(self, root: Root | None, **sampling: Unpack[Sampling]) -> None:
        super().__init__(weighted="clients", **sampling)
        if root is None:
            raise ValueError("FLTrust trains on public examples at the server; set init.public")
        self._root, self._round = root, 0

    def bears(self, cohort: int) -> int:
        """All but one."""
        return cohort - 1

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the updates by trust."""
        self._round = server_round
        return super().aggregate_train(server_round, replies)

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        """By their likeness to what the server's own examples ask for."""
        own = self._root(self._received, self._round)
        pieces = [(own[name] - self._received[name]).flatten().float() for name in self._names]
        return trusted(updates, torch.cat(pieces))


class NormClipping(RobustAverage):
    """The mean of updates that are clipped to a norm, with noise.

    Parameters
    ----------
    norm
        No update counts as longer. None: the median norm of the cohort's, in each round (ours).
    noise
        Standard deviation of what is added to each entry of the mean; what differential privacy
        needs is ``strategy=dp_server_fixed``.
    weighted, sampling
        See :class:`RobustAverage`.

    Notes
    -----
    Source: arXiv 1911.07963, section 4.
    """

    traits = RobustAverage.traits

    def __init__(
        self,
        *,
        norm: float | None,
        noise: float,
        weighted: Weighted,
        **sampling: Unpack[Sampling],
    ) -> None:
        super().__init__(weighted=weighted, **sampling)
        if not ((norm is None or norm > 0) and noise >= 0):
            raise ValueError("norm must be above 0, noise 0 or above")
        self.norm, self.noise = norm, noise

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        """The clipped mean and noise, drawn from torch's generator, which a run seeds."""
        norm = self.norm or float(updates.norm(dim=1).median())
        mean = clipped_around(updates, weights, torch.zeros_like(updates[0]), norm)
        return mean + self.noise * torch.randn_like(mean) if self.noise else mean


class DivideAndConquer(RobustAverage):
    """The mean of the updates that do not stand out along the direction of most difference.

    Parameters
    ----------
    num_malicious_nodes
        How many liars there may be in a cohort.
    entries, iterations
        Entries that are looked at in an iteration, and how many there are.
    weighted, sampling
        See :class:`RobustAverage`.

    Notes
    -----
    Source: Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021.
    """

    traits = RobustAverage.traits

    def __init__(
        self,
        *,
        num_malicious_nodes: int,
        entries: int,
        iterations: int,
        weighted: Weighted,
        **sampling: Unpack[Sampling],
    ) -> None:
        super().__init__(weighted=weighted, **sampling)
        if not (num_malicious_nodes >= 0 and entries > 0 and iterations > 0):
            raise ValueError("num_malicious_nodes must be 0 or more, the others above 0")
        self.num_malicious_nodes = num_malicious_nodes
        self.entries, self.iterations = entries, iterations

    def require(self, run: RunFacts) -> None:
        """Refuse a cohort of which nobody may be left.

        Raises
        ------
        ValueError
            Says how many clients a round needs.
        """
        super().require(run)
        removed = self.num_malicious_nodes * self.iterations
        if run.cohort <= removed:
            raise ValueError(
                f"strategy.args: removes up to {removed} of the {run.cohort} clients of a round: "
                "fewer num_malicious_nodes or iterations"
            )

    def bears(self, cohort: int) -> int:
        """As many as it is told."""
        return min(self.num_malicious_nodes, (cohort - 1) // 2)

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        """The mean of what is left; of fewer answers than it may remove, of all."""
        if len(updates) <= self.num_malicious_nodes * self.iterations:
            return weights @ updates / weights.sum()
        random = torch.Generator().manual_seed(int(torch.randint(2**31, (1,))))
        left = conquered(updates, self.num_malicious_nodes, self.entries, self.iterations, random)
        return weights[left] @ updates[left] / weights[left].sum()
