"""Which device to compute on."""

from __future__ import annotations

from typing import Literal

import torch

from fedwsa.config.component import ConfigError

Device = Literal["auto", "cpu", "cuda", "mps"]


def resolve_device(name: Device, key: str = "device") -> Literal["cpu", "cuda", "mps"]:
    """``auto`` is the GPU if there is one, CUDA's or Apple's; ``key`` is what an error names.

    Raises
    ------
    ConfigError
        If a GPU is asked for and there is none.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{key}: there is no CUDA GPU here")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"{key}: there is no Apple GPU here that torch can use")
    return name
