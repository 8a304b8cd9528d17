"""Clients of several depths: the first blocks of a network, with a classifier at each exit."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Unpack

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from fedwsa.algorithms.exits.client import ExitLosses
from fedwsa.algorithms.run_facts import RunFacts
from fedwsa.algorithms.sizes.layout import Shapes
from fedwsa.algorithms.sizes.server import ForSizes, SizedFedAvg, Told
from fedwsa.algorithms.traits import Traits
from fedwsa.models.architecture import Axis
from fedwsa.models.exits import EXITS, Exits
from fedwsa.wire import messages
from fedwsa.wire.names import EXIT_DEPTHS

logger = logging.getLogger("fedwsa")

Share = Annotated[float, Field(ge=0, le=1)]


class EarlyExits(SizedFedAvg):
    """Sizes that differ in depth have a classifier at each depth on their way.

    A client of a size has its blocks, its own classifier and those of all less deep sizes; blocks
    and the classifiers of a depth are averaged over the clients that have them. If all sizes have
    one depth, it is :class:`fedwsa.algorithms.sizes.heterofl.HeteroFL`, to the bit.

    Parameters
    ----------
    shapes
        As for :class:`fedwsa.algorithms.sizes.server.SizedFedAvg`: of the networks without exits.
    exits : Exits
        What is behind the blocks of each depth.
    distill : float
        Weight of what the classifiers of a client learn from each other.
    temperature : float
        τ, by which they are softened for it.
    size_of, weighted, scaler, class_rows, classifier, sampling
        As for ``SizedFedAvg``.
    """

    traits: ClassVar[Traits] = replace(
        SizedFedAvg.traits,
        wants=("shapes", "classifier", "exits"),
        objectives=(ExitLosses,),
    )
    rule: ClassVar[str]

    def __init__(
        self,
        shapes: Shapes,
        *,
        exits: Exits,
        distill: NonNegativeFloat,
        temperature: PositiveFloat,
        **others: Unpack[ForSizes],
    ) -> None:
        if distill < 0 or temperature <= 0:
            raise ValueError("distill must be zero or above, and temperature above zero")
        self.exits, self.distill, self.temperature = exits, distill, temperature
        self._deepest, self._rounds = max(exits.depths.values()), 0
        of_exits = {
            size: {name: tuple(t.shape) for name, t in exits.arrays[size].items()}
            for size in shapes
        }
        super().__init__(
            {size: {**of, **of_exits[size]} for size, of in shapes.items()},
            **others,
        )

    def weight(self, server_round: int) -> float:
        """How much classifiers learn from each other in a round."""
        return self.distill

    def require(self, run: RunFacts) -> None:
        """As sizes do, and warn where there is no exit."""
        super().require(run)
        self._rounds = run.rounds
        if len({*self.exits.depths.values()}) == 1:
            logger.warning(
                "clients.sizes: no size is deeper than another, so that there is no early exit and "
                "this is HeteroFL; give them depths, as sizes='{S: {width: 0.25, depth: 1}}'"
            )

    # --- what is whose -----------------------------------------------------------------------

    def _exit(self, name: str) -> tuple[int, str] | None:
        """The place on the way, and the name there, of an array of an exit; None of another."""
        found = re.match(rf"{EXITS}\.(\d+)\.", name)
        return None if found is None else (int(found[1]), name[found.end() :])

    def key(self, size: str, name: str) -> str:
        """Where the global arrays hold a size's array: those of a depth's classifier together."""
        depth = self.exits.depths[size]
        if (exit_ := self._exit(name)) is not None:
            depth, name = self.exits.on_the_way(size)[exit_[0]], exit_[1]
        elif not re.match(self.exits.behind, name):
            return name
        return name if depth == self._deepest else f"depth {depth}/{name}"

    def axes_of(self, size: str, name: str) -> Mapping[int, Axis]:
        """As in the networks of this size: a dense layer may read other images behind each exit."""
        return self.exits.axes[size].get(name, {})

    @property
    def has_own(self) -> bool:
        """Whether there are classifiers of several depths."""
        return len({*self.exits.depths.values()}) > 1

    def rows(self, size: str) -> Sequence[str]:
        """The classifiers on the way, too."""
        of_exits = [
            name
            for name in self.exits.arrays[size]
            if (exit_ := self._exit(name)) is not None and exit_[1] in self.classifier
        ]
        return [*self.classifier, *of_exits] if self.classifier else ()

    def join(self, states: Mapping[str, Mapping[str, Tensor]]) -> ArrayRecord:
        """The largest size's state, and its exits as they begin."""
        whole = {**states[self.largest], **self.exits.arrays[self.largest]}
        return messages.to_arrays({self.key(self.largest, n): t for n, t in whole.items()})

    def plain(self, arrays: ArrayRecord, size: str, server_round: int) -> ArrayRecord:
        """The state of a size's network: without exits."""
        sent = messages.to_tensors(self.split(arrays, size, server_round))
        return messages.to_arrays({n: t for n, t in sent.items() if self._exit(n) is None})

    # --- what is said ------------------------------------------------------------------------

    def instructions(self, size: str, server_round: int) -> dict[str, Told]:
        """Where the exits are."""
        depths = self.exits.on_the_way(size)
        return {
            **super().instructions(size, server_round),
            **({EXIT_DEPTHS: depths} if depths else {}),
        }

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Say how classifiers learn from each other."""
        sent = list(super().configure_train(server_round, arrays, config, grid))
        settings = ConfigRecord(
            {
                "rule": self.rule,
                "weight": float(self.weight(server_round)),
                "temperature": float(self.temperature),
            }
        )

        def told(content: RecordDict) -> RecordDict:
            has_exits = EXIT_DEPTHS in content.config_records[self.configrecord_key]
            beside = {ExitLosses.settings: settings} if has_exits else {}
            return RecordDict({**content, **beside})

        messages.change_contents(sent, told)
        return sent


class DepthFL(EarlyExits):
    """DepthFL: sizes differ in depth alone, and the classifiers of a client teach each other.

    Local loss: :func:`fedwsa.algorithms.exits.client.mutual`, its weight w = distill·exp(−5(1 −
    r/(ramp·rounds))²) in round r, up to ``distill``. The paper's FedDyn is not part of this.

    Source: DepthFL: Depthwise Federated Learning for Heterogeneous Clients, ICLR 2023.

    Parameters
    ----------
    ramp : float
        In which share of the rounds w rises; the authors take 300 of 1000.
    shapes, exits, distill, temperature, size_of, weighted, class_rows, classifier, sampling
        See :class:`EarlyExits`.

    Raises
    ------
    ValueError
        If an array has different shapes in two sizes.
    """

    traits: ClassVar[Traits] = EarlyExits.traits
    most_alike = "sizes may differ in depth only (sizes.S='{width: 1.0, depth: 1}')"
    rule = "mutual"

    def __init__(
        self,
        shapes: Shapes,
        *,
        exits: Exits,
        distill: NonNegativeFloat = 1.0,
        temperature: PositiveFloat = 1.0,
        ramp: Share = 0.3,
        **others: Unpack[ForSizes],
    ) -> None:
        super().__init__(shapes, exits=exits, distill=distill, temperature=temperature, **others)
        self.ramp = ramp
        for size, of in self.shapes.items():
            for name, shape in of.items():
                if self.layout.wholes[self.key(size, name)] != shape:
                    raise ValueError(
                        f"size {size} has {name} of {shape}, and {self.largest} of "
                        f"{self.layout.wholes[self.key(size, name)]}: {self.most_alike}"
                    )

    def weight(self, server_round: int) -> float:
        """It rises: first there is little to learn from."""
        rising = self.ramp * self._rounds
        left = 1.0 - min(server_round - 1, rising) / rising if rising else 0.0
        return self.distill * math.exp(-5.0 * left**2)


class ScaleFL(EarlyExits):
    """ScaleFL: sizes differ in width and depth, and the last classifier teaches those before it.

    Local loss: :func:`fedwsa.algorithms.exits.client.last`; they learn from it after the first
    rounds.

    Source: ScaleFL: Resource-Adaptive Federated Learning with Heterogeneous Clients, CVPR 2023.

    Parameters
    ----------
    after : float
        The share of the rounds in which classifiers do not learn from each other yet.
    shapes, exits, distill, temperature, size_of, weighted, scaler, class_rows, classifier
        See :class:`EarlyExits`, as for the other parameters.
    """

    traits: ClassVar[Traits] = EarlyExits.traits
    rule = "last"

    def __init__(
        self,
        shapes: Shapes,
        *,
        exits: Exits,
        distill: NonNegativeFloat = 0.05,
        temperature: PositiveFloat = 3.0,
        after: Share = 0.25,
        **others: Unpack[ForSizes],
    ) -> None:
        super().__init__(shapes, exits=exits, distill=distill, temperature=temperature, **others)
        self.after = after

    def weight(self, server_round: int) -> float:
        """None at first."""
        return self.distill if server_round > self.after * self._rounds else 0.0
