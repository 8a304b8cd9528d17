"""Which device to compute on."""

from __future__ import annotations

from typing import Literal

import torch

from fedwsa.config.component import ConfigError

Device = Literal["auto", "cpu", "cuda"]


def resolve_device(name: Device, key: str = "device") -> Literal["cpu", "cuda"]:
    """``auto`` is the GPU if there is one; ``key`` is what an error names.

    Raises
    ------
    ConfigError
        If a GPU is asked for and there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{key}: there is no CUDA GPU here")
    return name
