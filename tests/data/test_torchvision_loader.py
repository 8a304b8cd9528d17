"""torchvision loads beside a CPU-only torch, and is left alone where it loads by itself."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import torch
{before}
from fedwsa.models.torchvision_loader import torchvision
assert torchvision.datasets.CIFAR10
calls = [n for n in ("nms", "qnms") if hasattr(torch.ops.torchvision, n)]
print(calls)
"""


def run(before: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(before=before)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_loads_here() -> None:
    assert "nms" in run("")


def test_where_the_operators_exist_nothing_is_declared() -> None:
    # Stands for a torchvision that fits: its import succeeds, so that ours must add nothing.
    declare = (
        'for name in ("nms", "qnms"):\n'
        '    signature = "(Tensor a, Tensor b, float c) -> Tensor"\n'
        '    torch.library.define(f"torchvision::{name}", signature)\n'
        "original = torch.library.define\n"
        "def refuse(name, *a, **k):\n"
        '    assert name not in ("torchvision::nms", "torchvision::qnms"), name\n'
        "    return original(name, *a, **k)\n"
        "torch.library.define = refuse"
    )
    assert "nms" in run(declare)
