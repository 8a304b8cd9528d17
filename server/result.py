"""``result.json``: the last round in figures, and sums over all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedwsa.runfolder.write import write_json
from fedwsa.schema.config import Config
from server.callbacks.choosing import BestModel
from server.record import RoundRecord

_COUNTED = ("failed", "rejected", "dropped", "late")  # client rounds
_COSTS = ("bytes_down", "bytes_up", "simulated_seconds")


def tally_of(record: RoundRecord) -> dict[str, float]:
    """What a round adds to the sums in the result."""
    found: dict[str, float] = {key: len(getattr(record, key)) for key in _COUNTED}
    found["moved"] = int(record.moved)
    if (costs := record.costs) is not None:
        sums = (costs.bytes_down, costs.bytes_up, costs.seconds)
        found |= dict(zip(_COSTS, sums, strict=True))
    return found


def write_result(
    folder: Path,
    config: Config,
    last: RoundRecord,
    tally: Mapping[str, float],
    best: BestModel | None = None,
) -> dict[str, Any]:
    """Write ``result.json``, whole: of the last round, never of the best one, which is only named.

    Parameters
    ----------
    last
        The last round, which is always evaluated.
    tally
        Sums over the rounds, see :func:`tally_of`, and ``seconds``.
    best
        What kept the best model, if something did.
    """
    score, clients = last.score, last.clients
    result: dict[str, Any] = {
        "algorithm": config.label,
        "seed": config.seed,
        "accuracy": score.accuracy if score else None,
        "loss": score.loss if score else None,
        "rounds": last.round,
        "seconds": round(tally["seconds"], 3),
        "client_accuracy_mean": clients.mean if clients else None,
        "client_accuracy_worst10": clients.worst10 if clients else None,
        "client_accuracy_std": clients.std if clients else None,
        "client_accuracy_jain": clients.jain if clients else None,
        **{key: tally[key] for key in _COUNTED},
    }
    if last.epsilon is not None:
        result |= {"epsilon": last.epsilon, "delta": config.privacy.delta}
    if last.validation is not None:
        result["validation_accuracy"] = last.validation.accuracy
        result["validation_loss"] = last.validation.loss
    if best is not None:
        result["best_round"], result["best_validation_accuracy"] = best.round, best.accuracy
    result |= {key: tally[key] for key in _COSTS if key in tally}
    if config.attack.share:
        result["attackers"] = sorted(config.attackers)
        if last.attack_success is not None:
            result["attack_success"] = last.attack_success
    for name in ("adapted", "unseen", "unseen_adapted"):
        if (scores := getattr(last, name)) is not None:
            result[f"{name}_accuracy_mean"] = scores.mean
            result[f"{name}_accuracy_worst10"] = scores.worst10
    if config.clients.sizes is not None:
        result["sizes"] = {size: score.accuracy for size, score in last.sizes.items()}
    write_json(folder / "result.json", result)
    return result
