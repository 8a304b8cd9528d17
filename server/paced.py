"""Which runs may go at another pace than in rounds; the others are refused before they start."""

from __future__ import annotations

import logging

from flwr.serverapp.strategy import FedAvg, Strategy

from fedwsa.algorithms.averaging import answers_of
from fedwsa.algorithms.traits import traits_of
from fedwsa.algorithms.wrapping import chain
from fedwsa.config.component import ConfigError
from fedwsa.schema.config import Config

logger = logging.getLogger("fedwsa")


def require_paced(strategy: Strategy, config: Config) -> None:
    """Refuse what goes by whole cohorts: strategies, guards, deadlines, attacks.

    Raises
    ------
    ConfigError
        Says what to set.
    """
    for part in chain(strategy):
        if why := _needs_cohorts(part):
            raise ConfigError(
                f"pace: {type(part).__name__} {why}; it needs rounds, pace=synchronous"
            )
    *_, inner = chain(strategy)
    if not isinstance(inner, FedAvg) or "fraction_train" in config.strategy.args:
        raise ConfigError("pace: who trains is chosen by the pace, not by the strategy")
    if answers_of(strategy):
        raise ConfigError("pace: answers beside the model cannot be late; pace=synchronous")
    guard, clients = config.guard, config.clients
    wishes = {
        "guard.max_norm_ratio": guard.max_norm_ratio is not None,
        "guard.max_scope_kl": guard.max_scope_kl is not None,
        "guard.min_results": guard.min_results != 1,
        "guard.repeats": bool(guard.repeats),
        "clients.deadline": clients.deadline is not None,
        "clients.sizes": clients.sizes is not None,
        "attack": bool(config.attack.share),
        "privacy.local": config.privacy.local is not None,
    }
    if found := [key for key, wished in wishes.items() if wished]:
        raise ConfigError(
            f"{found[0]}: is about the clients of a round, of which this pace has none; leave it "
            "out, or take pace=synchronous"
        )
    _require_reachable(config)


def _require_reachable(config: Config) -> None:
    """Refuse to train more clients at once than there are; name a buffer that never fills."""
    pace, most = config.pace, config.learning
    if pace.concurrency is not None and pace.concurrency > most:
        raise ConfigError(f"pace.concurrency: there are only {most} clients to train")
    if pace.buffer is not None and pace.buffer > most:
        logger.warning(
            "pace.buffer: %d answers never come, since each of %d clients answers once between two "
            "steps; a step is when all have",
            pace.buffer,
            most,
        )


def _needs_cohorts(part: Strategy) -> str | None:
    traits = traits_of(part)
    reasons = {
        "trains in one place": not traits.on_devices,
        "adds noise to the sum of a cohort": traits.adds_noise,
        "has clients whose memory goes by rounds": traits.clients_remember,
        "has no model that all train": not (traits.whole_models and traits.has_global_model),
    }
    return next((why for why, holds in reasons.items() if holds), None)
