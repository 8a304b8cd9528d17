"""What FedWSA tells its clients, and where it stands in a message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedwsa.scope.weight_scope import DEFAULT_FLOOR, Fusion, Reduction, WeightScope
from fedwsa.wire.content import Records, find_record
from fedwsa.wire.names import (
    CONFIG,
    SCOPE_FLOOR,
    SCOPE_FUSION,
    SCOPE_KL,
    SCOPE_LAYERS,
    SCOPE_MEAN,
    SCOPE_NORMALISE,
    SCOPE_PARTIAL,
    SCOPE_PRESENT,
    SCOPE_REDUCTION,
    SCOPE_REPORTED,
    SCOPE_SPREAD,
    SCOPE_STRENGTH,
    SCOPE_TARGET,
    TARGET_MEAN,
    TARGET_VARIANCE,
)

REPORTED = (SCOPE_MEAN, SCOPE_SPREAD, SCOPE_KL)
"""Metrics by which a client reports its scopes, a list with a number per layer each."""


@dataclass(frozen=True, eq=False)
class ScopeInstruction:
    """The scope to train towards, how strongly, and what to report.

    Attributes
    ----------
    target : WeightScope
        A mean and a variance for each layer that takes part.
    strength : float
        λ; at zero clients only measure.
    fusion : {"moments", "mean_variance", "mean_std"}
        Which spread is reported, see :func:`fedwsa.scope.weight_scope.spread`.
    reduction : {"layer", "entries"}
        Whether a layer's KL counts once or once per entry.
    floor : float
        Smallest standard deviation in the KL.
    normalise : bool
        Target and reports are times √fan_in, by the fan-in that a layer has at the client.
    partial : bool
        Clients may lack layers, and report which they have.
    reported : bool
        Whether scopes are reported at all.
    """

    target: WeightScope
    strength: float
    fusion: Fusion = "moments"
    reduction: Reduction = "layer"
    floor: float = DEFAULT_FLOOR
    normalise: bool = False
    partial: bool = False
    reported: bool = True

    @property
    def answers(self) -> tuple[str, ...]:
        """The metrics that the reply must have; none where scopes are not reported."""
        if not self.reported:
            return ()
        return (*REPORTED, SCOPE_PRESENT) if self.partial else REPORTED

    def to_records(self) -> dict[str, dict[str, Any]]:
        """Record name → key → value: additions to the one ``config``, and the target's record.

        The three switches are sent where they differ from their defaults alone.
        """
        settings: dict[str, Any] = {
            SCOPE_LAYERS: list(self.target.names),
            SCOPE_FUSION: self.fusion,
            SCOPE_STRENGTH: self.strength,
            SCOPE_REDUCTION: self.reduction,
            SCOPE_FLOOR: self.floor,
        }
        if self.normalise:
            settings[SCOPE_NORMALISE] = True
        if self.partial:
            settings[SCOPE_PARTIAL] = True
        if not self.reported:
            settings[SCOPE_REPORTED] = False
        target = {
            TARGET_MEAN: self.target.mean.tolist(),
            TARGET_VARIANCE: self.target.variance.tolist(),
        }
        return {CONFIG: settings, SCOPE_TARGET: target}

    @classmethod
    def from_content(cls, content: Records) -> ScopeInstruction | None:
        """Read a message; None if it asks for no scopes.

        Parameters
        ----------
        content
            Flower's records or plain mappings; the settings may stand in a record of any name.
        """
        settings = find_record(content, SCOPE_LAYERS)
        if settings is None:
            return None
        target = content[SCOPE_TARGET]
        return cls(
            WeightScope.of(
                settings[SCOPE_LAYERS],
                target[TARGET_MEAN],
                target[TARGET_VARIANCE],
            ),
            strength=float(settings[SCOPE_STRENGTH]),
            fusion=settings[SCOPE_FUSION],
            reduction=settings[SCOPE_REDUCTION],
            floor=float(settings[SCOPE_FLOOR]),
            normalise=bool(settings.get(SCOPE_NORMALISE, False)),
            partial=bool(settings.get(SCOPE_PARTIAL, False)),
            reported=bool(settings.get(SCOPE_REPORTED, True)),
        )
