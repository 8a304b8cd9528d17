"""The one place that imports torchvision, so that it also loads beside a CPU-only torch.

The torchvision wheels of the package index are built for CUDA. Beside a CPU-only torch their
compiled operators do not load, and the import stops because torchvision registers a fake
implementation for operators that do not exist (``torchvision::nms does not exist``). Declaring
the missing operators is enough: nothing here calls them, we use the data sets and nothing that
is compiled. Where torchvision loads by itself, this module does nothing else.
"""

from __future__ import annotations

import torch


def _declare_missing_operators() -> None:
    signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", signature)


try:
    import torchvision
except RuntimeError as error:
    if "torchvision::" not in str(error):
        raise
    _declare_missing_operators()
    import torchvision

__all__ = ["torchvision"]
