"""What differential privacy has cost: Flower's accountant for its wrappers and its local mod.

ε is of the Gaussian mechanism without amplification by sampling, composed over the releases by
Rényi divergences (arXiv 1702.07476), and at client level: neighbouring fleets differ in all that
one client contributes, which counts or is left out as zero. Where one client is exchanged for
another, the sensitivity is twice as large: read ε at half the noise multiplier.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Strategy,
)
from flwr.supercore.privacy_accounting import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyConfig,
    SamplingMethod,
)
from flwr.supercore.privacy_accounting.rdp_accountant import RdpAccountant

from fedwsa.algorithms.averaging import weighs_by
from fedwsa.algorithms.traits import traits_of
from fedwsa.algorithms.wrapping import Wrapper, chain
from fedwsa.wire import messages

logger = logging.getLogger("fedwsa")

Fixed = DifferentialPrivacyClientSideFixedClipping | DifferentialPrivacyServerSideFixedClipping
Adaptive = (
    DifferentialPrivacyClientSideAdaptiveClipping | DifferentialPrivacyServerSideAdaptiveClipping
)


def is_private(strategy: Strategy) -> bool:
    """Whether it, or one that it wraps, adds noise."""
    return any(traits_of(part).adds_noise for part in chain(strategy))


def accountant(delta: float, population: int) -> RdpAccountant:
    """Flower's, for releases without amplification."""
    return RdpAccountant(
        PrivacyConfig(
            delta,
            population,
            NeighboringRelation.ADD_OR_REMOVE_ONE,
            SamplingMethod.NO_AMPLIFICATION,
        )
    )


class Accounted(Wrapper):
    """Account for a wrapper with adaptive clipping, for which Flower has no accountant.

    A round releases the noised average, with noise z_Δ·C/n, and the noised count of clipped
    updates, with noise σ_b: together (z_Δ⁻² + (2σ_b)⁻²)^-½ (arXiv 1905.03871, theorem 1). Flower
    moves the clipping norm before it draws the noise, so that z_Δ counts by the ratio of the new
    norm to that by which the updates were clipped.

    As Flower's accountant for fixed clipping, it releases nothing where a reply is missing or
    counts more than another: the noise would not be enough.

    Parameters
    ----------
    strategy : Strategy
        One of Flower's two wrappers with adaptive clipping.
    accountant : RdpAccountant
        Its ledger.
    """

    def __init__(self, strategy: Strategy, accountant: RdpAccountant) -> None:
        assert isinstance(strategy, Adaptive)
        self.strategy, self.accountant = strategy, accountant

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the wrapper release what it may, and account for it."""
        dp = self.strategy
        assert isinstance(dp, Adaptive)
        given = list(replies)
        if problem := self._unequal(given, dp.num_sampled_clients):
            logger.warning("round %d: nothing is released: %s", server_round, problem)
            return None, None
        clipped_at = dp.clipping_norm
        arrays, metrics = dp.aggregate_train(server_round, given)
        if arrays is not None:
            shrunk = dp.noise_multiplier * dp.clipping_norm / clipped_at
            z = (shrunk**-2 + (2 * dp.clipped_count_stddev) ** -2) ** -0.5
            population = self.accountant.config.population_size
            event = GaussianPrivacyEvent(z, dp.num_sampled_clients, population)
            self.accountant.compose(event)
        return arrays, metrics

    def _unequal(self, replies: list[Message], count: int) -> str | None:
        usable = messages.reply_metrics(replies)
        if len(usable) != count or len(replies) != count:
            return f"{len(usable)} of {count} clients gave a usable answer"
        key = weighs_by(self.strategy)
        if len({metrics.get(key) for metrics in usable}) > 1:
            return f"the clients do not count equally, by {key}"
        return None


def accounted(strategy: Strategy, delta: float, population: int) -> Strategy:
    """The strategy with an accountant, if it is a privacy wrapper whose ε can be known.

    That takes noise, and FedAvg's average within: of another rule nobody knows by how much one
    client moves its result, and a warning says so.
    """
    if not isinstance(strategy, Fixed | Adaptive):
        if is_private(strategy):
            logger.warning("privacy: nobody knows the ε of %s", type(strategy).__name__)
        return strategy
    inner = strategy.strategy
    averages = isinstance(inner, FedAvg) and type(inner).aggregate_train is FedAvg.aggregate_train
    if not averages or strategy.noise_multiplier <= 0:
        why = "no noise is added" if averages else f"{type(inner).__name__} does not just average"
        logger.warning("privacy: no ε holds for this run: %s", why)
        return strategy
    if isinstance(strategy, Fixed):
        strategy.accountant = accountant(delta, population)
        return strategy
    return Accounted(strategy, accountant(delta, population))


def spent(strategy: Strategy) -> float | None:
    """ε so far, of a strategy that has an accountant; None of others."""
    for part in chain(strategy):
        if isinstance(found := getattr(part, "accountant", None), RdpAccountant):
            return found.get_privacy_spent().epsilon if found.num_releases else 0.0
    return None


def local_multiplier(epsilon: float, delta: float) -> float:
    """σ/Δ of Flower's local mod, which adds noise of Δ·√(2 ln(1.25/δ))/ε to each update."""
    return math.sqrt(2 * math.log(1.25 / delta)) / epsilon


def local_spent(epsilon: float, delta: float, answers: int) -> float:
    """ε of a client that gave so many answers under local privacy, by the same accountant."""
    if not answers:
        return 0.0
    ledger = accountant(delta, 1)
    ledger.compose(GaussianPrivacyEvent(local_multiplier(epsilon, delta), 1, 1), answers)
    return ledger.get_privacy_spent().epsilon
