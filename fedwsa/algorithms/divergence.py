"""What a network that learns from another's answers has to come nearer to."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import log_softmax, softmax


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """τ²·KL(teacher ‖ student) of the softened distributions, the teacher's without a gradient.

    Parameters
    ----------
    teacher, student
        Logits ``(N, C, …)``.

    Returns
    -------
    Tensor
        ``(N, …)``.

    Source: arXiv 1503.02531.
    """
    wanted = softmax(teacher.detach() / temperature, 1)
    given = log_softmax(student / temperature, 1)
    apart: Tensor = temperature**2 * (
        wanted * (log_softmax(teacher.detach() / temperature, 1) - given)
    ).sum(1)
    return apart
