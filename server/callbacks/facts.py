"""A round in flat figures, as tables and trackers have them."""

from __future__ import annotations

from server.record import RoundRecord

Fact = float | int | list[int] | None


def facts(record: RoundRecord) -> dict[str, Fact]:
    """What ``history.csv`` says of a round; lists name clients, None is not known."""
    score, kept = record.score, record.validation
    clients, costs = record.clients, record.costs
    return {
        "round": record.round,
        "accuracy": score.accuracy if score else None,
        "loss": score.loss if score else None,
        "validation_accuracy": kept.accuracy if kept else None,
        "validation_loss": kept.loss if kept else None,
        "train_loss": record.train_loss,
        "lr": record.lr,
        "server_lr": record.server_lr,
        "client_accuracy_mean": clients.mean if clients else None,
        "client_accuracy_worst10": clients.worst10 if clients else None,
        "client_accuracy_std": clients.std if clients else None,
        "client_accuracy_jain": clients.jain if clients else None,
        "epsilon": record.epsilon,
        "staleness": record.staleness,
        "attack_success": record.attack_success,
        "bytes_down": costs.bytes_down if costs else None,
        "bytes_up": costs.bytes_up if costs else None,
        "simulated_seconds": costs.seconds if costs else None,
        "flops_per_client": costs.flops_per_client if costs else None,
        "dropped": list(record.dropped),
        "late": list(record.late),
        "failed": list(record.failed),
        "rejected": list(record.rejected),
        "failed_evaluation": list(record.failed_evaluation),
        "cohort": list(record.cohort),
    }


def numbers(record: RoundRecord) -> dict[str, float]:
    """The facts that are numbers, lists by their length, with sizes, seconds and scopes.

    Names have slashes: ``size/S/accuracy``, ``seconds/train``, ``scope/LAYER/fused_std``.
    """
    found: dict[str, float] = {}
    for key, value in facts(record).items():
        if value is not None and key != "round":
            found[key] = len(value) if isinstance(value, list) else value
    if len(record.sizes) > 1:
        for size, score in record.sizes.items():
            found |= {f"size/{size}/accuracy": score.accuracy, f"size/{size}/loss": score.loss}
    found |= {f"seconds/{phase}": seconds for phase, seconds in record.seconds.items()}
    if (report := record.scopes) is not None:
        for i, layer in enumerate(report.fused.names):
            found |= {
                f"scope/{layer}/fused_mean": float(report.fused.mean[i]),
                f"scope/{layer}/fused_std": float(report.fused.std[i]),
                f"scope/{layer}/averaged_mean": float(report.averaged.mean[i]),
                f"scope/{layer}/averaged_std": float(report.averaged.std[i]),
                f"scope/{layer}/client_kl": float(report.kl[i]),
            }
    return found
