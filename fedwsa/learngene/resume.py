"""Going on with a training that was interrupted."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from fedwsa import interruption
from fedwsa.data.cache import fetch, store

_OPTIMIZER = "optimizer "
_LAYOUT = "2"  # how the optimiser's state is named: that of another would be left out silently


@dataclass
class Resume:
    """A file with the state of a training, written now and then and when it is done.

    Attributes
    ----------
    file : Path
        Its place.
    key : str
        Names the training: the state of another one is not gone on with.
    every : float
        Seconds between two writings.
    found : int
        The step that was gone on from; 0: from the start.
    """

    file: Path
    key: str
    every: float = 30.0
    found: int = 0
    _kept: float = field(default_factory=time.monotonic)

    @torch.no_grad()
    def restore(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> int:
        """Put back what was kept; returns how many steps are done."""
        kept = fetch(self.file)
        if kept is None or (kept[1].get("key"), kept[1].get("layout")) != (self.key, _LAYOUT):
            return 0
        tensors, facts = kept
        for i, parameter in enumerate(parameters):
            parameter.copy_(tensors[f"parameter {i}"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(_OPTIMIZER):
                number, _, key = name.removeprefix(_OPTIMIZER).partition(" ")
                state.setdefault(int(number), {})[key] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        for name, buffer in model.named_buffers():
            buffer.copy_(tensors[f"buffer {name}"])
        self.found = int(facts["done"])
        return self.found

    def keep(
        self,
        done: int,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        now: bool = False,
    ) -> None:
        """Write the state, if it is time to or ``now``."""
        if not now and time.monotonic() - self._kept < self.every:
            return
        tensors = {f"parameter {i}": p.detach().cpu() for i, p in enumerate(parameters)}
        for number, values in optimizer.state_dict()["state"].items():
            tensors |= {f"{_OPTIMIZER}{number} {key}": t.cpu() for key, t in values.items()}
        tensors |= {f"buffer {n}": b.cpu() for n, b in model.named_buffers()}
        store(
            self.file, tensors, {"key": self.key, "layout": _LAYOUT, "done": str(done)}, "init.file"
        )
        self._kept = time.monotonic()

    def forget(self) -> None:
        """Remove the file, once what was trained is kept elsewhere."""
        self.file.unlink(missing_ok=True)


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed: a step is then finished and kept before the training stops.

    Pressed again, it is answered as it was before, at once. Outside the main thread, which alone
    is told of it, and where it is ignored, that stays so.
    """
    before = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or not callable(before):
        yield interruption.asked
        return
    pressed: list[int] = []

    def press(number: int, frame: FrameType | None) -> None:
        if pressed:
            before(number, frame)
        pressed.append(number)

    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed) or interruption.asked()
    finally:
        signal.signal(signal.SIGINT, before)
