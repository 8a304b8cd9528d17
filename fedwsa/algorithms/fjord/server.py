"""FjORD, the server half of :class:`fedwsa.algorithms.fjord.client.OrderedDropout`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar, Unpack

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import nn

from fedwsa.algorithms.fjord.client import OrderedDropout
from fedwsa.algorithms.run_facts import RunFacts
from fedwsa.algorithms.sizes.layout import Shapes
from fedwsa.algorithms.sizes.server import ForSizes, SizedFedAvg
from fedwsa.algorithms.traits import Traits
from fedwsa.models.architecture import Axes
from fedwsa.wire import messages
from fedwsa.wire.names import SIZE


class FjORD(SizedFedAvg):
    """As HeteroFL; and clients train the parts of their network that smaller sizes have.

    With one size it is FedAvg, to the bit.

    Source: FjORD: Fair and Accurate Federated Learning under Heterogeneous Targets with Ordered
    Dropout, arXiv 2102.13451.

    Parameters
    ----------
    distill : bool
        Whether the part learns from the client's whole network, instead of from the labels in its
        place.
    shapes, axes, size_of, weighted, class_rows, classifier, sampling
        See :class:`fedwsa.algorithms.sizes.server.SizedFedAvg`.
    """

    traits: ClassVar[Traits] = replace(SizedFedAvg.traits, objectives=(OrderedDropout,))

    def __init__(
        self,
        shapes: Shapes,
        *,
        axes: Axes | None = None,
        distill: bool = True,
        **others: Unpack[ForSizes],
    ) -> None:
        super().__init__(shapes, axes=axes, **others)
        if self.scaler:
            raise ValueError(
                "scaler: FjORD has none: the parts that it trains are within a network"
            )
        self.distill = distill
        entries = {s: sum(map(math.prod, of.values())) for s, of in self.shapes.items()}
        self._within = {
            size: [
                small
                for small in sorted(entries, key=lambda s: entries[s])
                if entries[small] < entries[size] and self._fits(small, size)
            ]
            for size in entries
        }

    def _fits(self, small: str, size: str) -> bool:
        """Whether a size is a part of another."""
        room = self.shapes[size]
        return all(
            name in room and all(a <= b for a, b in zip(shape, room[name], strict=True))
            for name, shape in self.shapes[small].items()
        )

    def require(self, run: RunFacts) -> None:
        """Refuse recurrent networks, beside what any sizes do.

        Raises
        ------
        ValueError
            Names the size.
        """
        super().require(run)
        for size, model in run.models.items():
            if any(isinstance(module, nn.RNNBase) for module in model.modules()):
                raise ValueError(
                    f"strategy: FjORD trains parts of a network, and size {size} has a recurrent "
                    "layer, which torch cannot call with a part of its weights"
                )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Say which sizes a client draws from."""
        sent = list(super().configure_train(server_round, arrays, config, grid))

        def told(content: RecordDict) -> RecordDict:
            size = str(content.config_records[self.configrecord_key][SIZE])
            if not self._within[size]:
                return content
            settings = ConfigRecord({"sizes": list(self._within[size]), "distill": self.distill})
            return RecordDict({**content, OrderedDropout.settings: settings})

        messages.change_contents(sent, told)
        return sent
