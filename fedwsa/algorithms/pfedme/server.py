"""pFedMe, the server half of :class:`fedwsa.algorithms.pfedme.client.MoreauEnvelope`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar, Unpack

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from pydantic import PositiveFloat, PositiveInt

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.beside.server import Beside, Setting
from fedwsa.algorithms.pfedme.client import MoreauEnvelope
from fedwsa.algorithms.traits import Traits
from fedwsa.wire import messages


class PFedMe(Beside):
    """Clients keep models of their own at the minima of their envelopes, which are averaged.

    Source: Personalized Federated Learning with Moreau Envelopes, arXiv 2006.08848.

    Parameters
    ----------
    pull
        λ, of the envelopes.
    rate, steps
        Of the descent to each minimum.
    server_rate
        β: the part of the way to the clients' average that the global model goes.
    sampling
        As for Flower's FedAvg.
    """

    settings: ClassVar[str] = MoreauEnvelope.settings
    traits: ClassVar[Traits] = replace(
        Beside.traits,
        averages_by=Beside.traits.averages_by,
        objectives=(MoreauEnvelope,),
        transient=("_received",),
        rate="server_rate",
    )

    def __init__(
        self,
        *,
        pull: PositiveFloat,
        rate: PositiveFloat,
        steps: PositiveInt,
        server_rate: PositiveFloat,
        **sampling: Unpack[Sampling],
    ) -> None:
        if min(pull, rate, steps, server_rate) <= 0:
            raise ValueError(
                "pull, rate, steps and server_rate must be above zero; "
                f"got {pull}, {rate}, {steps}, {server_rate}"
            )
        super().__init__(**sampling)
        self.pull, self.rate, self.steps, self.server_rate = pull, rate, steps, server_rate
        self._received: dict[str, torch.Tensor] = {}

    def told(self, arrays: ArrayRecord) -> Mapping[str, Setting]:
        """How clients find their minima."""
        return {"pull": float(self.pull), "rate": float(self.rate), "steps": int(self.steps)}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As all of its kind."""
        self._received = messages.to_tensors(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """(1 − β)·w + β·mean of the clients' w."""
        averaged, metrics = super().aggregate_train(server_round, replies)
        if averaged is None or self.server_rate == 1:
            return averaged, metrics
        before = self._received
        new = {
            name: torch.lerp(before[name].to(mean), mean, float(self.server_rate))
            for name, mean in messages.to_tensors(averaged).items()
        }
        return messages.to_arrays(new), metrics
