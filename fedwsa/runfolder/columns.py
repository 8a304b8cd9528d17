"""Columns of ``history.csv``, whoever writes or reads it."""

from __future__ import annotations

CLIENT_LISTS = ("dropped", "late", "failed", "rejected", "failed_evaluation", "cohort")
"""Which hold ids of clients, with spaces between them."""


def history_columns(
    *, validates: bool, private: bool, aimed_at: bool = False, paced: bool = False
) -> list[str]:
    """The head of a run's history.

    Parameters
    ----------
    validates
        Whether there is a validation split.
    private
        Whether differential privacy has a price.
    aimed_at
        Whether an attack wants certain answers.
    paced
        Whether answers may be late.
    """
    return [
        "round",
        "accuracy",
        "loss",
        *(["validation_accuracy", "validation_loss"] if validates else []),
        *(["attack_success"] if aimed_at else []),
        "train_loss",
        "lr",
        "server_lr",
        "client_accuracy_mean",
        "client_accuracy_worst10",
        "client_accuracy_std",
        "client_accuracy_jain",
        *(["epsilon"] if private else []),
        "bytes_down",
        "bytes_up",
        "simulated_seconds",
        *(["staleness"] if paced else []),
        "flops_per_client",
        *CLIENT_LISTS,
    ]
