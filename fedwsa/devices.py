"""Which device to compute on."""

from __future__ import annotations

import torch

from fedwsa.components import ConfigError


def resolve_device(name: str) -> str:
    """``auto`` is the GPU if there is one.

    Raises
    ------
    ConfigError
        If a GPU is asked for and there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: there is no CUDA GPU here; allowed: auto, cpu")
    return name
