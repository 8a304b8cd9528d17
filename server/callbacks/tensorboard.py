"""Runs in TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedwsa.schema.config import Config
from server.callbacks.tracker import Tracker, require


class TensorBoard(Tracker):
    """Event files in ``tensorboard/`` of the run folder."""

    def __init__(self) -> None:
        self._module = require("torch.utils.tensorboard", "tensorboard")

    def on_start(self, config: Config, folder: Path) -> None:
        """Open the files; the configuration is a text."""
        self._writer = self._module.SummaryWriter(str(folder / "tensorboard"))
        self._text("config", json.dumps(config.model_dump(by_alias=True), indent=2))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """A scalar for each figure."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def on_result(self, result: Mapping[str, Any]) -> None:
        """The result is a text."""
        self._text("result", json.dumps(result, indent=2))

    def on_end(self) -> None:
        """Close the files."""
        self._writer.close()

    def _text(self, tag: str, text: str) -> None:
        # Indented, Markdown leaves it as it is.
        self._writer.add_text(tag, "\n".join("    " + line for line in text.splitlines()), 0)
