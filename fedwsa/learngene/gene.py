"""A learngene: what was learned once, and from which networks of other sizes begin."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from fedwsa.config.component import Component, ConfigError
from fedwsa.models import InputShape
from fedwsa.models.architecture import Architecture, Outline, architecture_of, outline
from fedwsa.models.inputs import described_shape, shape_from
from fedwsa.models.weights import open_weights
from fedwsa.runfolder.tensors import write_tensors

KIND, VERSION = "fedwsa-learngene", 4


@dataclass(frozen=True, eq=False)
class Learngene:
    """Knowledge of a network, and where it comes from.

    Attributes
    ----------
    method : str
        What made it, and makes networks of it.
    model : Component
        The network from which it comes: teacher or auxiliary model.
    shape : InputShape
        Of an example.
    classes : int
    tensors : mapping of str to Tensor
        Their names and shapes follow from the method.
    facts : dict
        What a person may want to know (teacher, data, versions, operations), and what the
        method needs beside the tensors.
    """

    method: str
    model: Component
    shape: InputShape
    classes: int
    tensors: Mapping[str, Tensor]
    facts: dict[str, Any]

    @property
    def architecture(self) -> Architecture:
        """What the network's builder says of it: axes, blocks, head."""
        return architecture_of(self.model)

    @cached_property
    def source(self) -> Outline:
        """Names and shapes of the network's arrays, by layer."""
        return outline(self.model, self.shape, self.classes)

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return sum(t.numel() for t in self.tensors.values())

    def save(self, file: Path) -> None:
        """Write it to a safetensors file, which is whole or not there.

        Raises
        ------
        ConfigError
            If it cannot be written.
        """
        about = {
            "kind": KIND,
            "version": VERSION,
            "method": self.method,
            "model": self.model.model_dump(by_alias=True),
            "shape": described_shape(self.shape),
            "classes": self.classes,
            "facts": self.facts,
        }
        write_tensors(file, self.tensors, {"fedwsa": json.dumps(about)}, "init.file")

    @classmethod
    def load(cls, file: Path) -> Learngene:
        """Read a file, all or nothing.

        The tensors' names and shapes are checked by the method that uses them, see
        :meth:`require`.

        Raises
        ------
        ConfigError
            If there is no such file, it is damaged, no learngene, or of another version.
        """
        try:
            if file.is_dir():
                raise IsADirectoryError
            if not file.is_file():
                raise FileNotFoundError
            opened = open_weights(file)
            about, tensors = json.loads(opened.metadata.get("fedwsa", "{}")), opened.tensors()
        except ConfigError:
            raise
        except FileNotFoundError:
            raise ConfigError(f"there is no learngene file {file}") from None
        except IsADirectoryError:
            raise ConfigError(f"{file} is a folder, and no learngene file") from None
        except (OSError, SafetensorError, ValueError) as error:
            raise ConfigError(f"{file} is damaged or no safetensors file: {error}") from None
        if not isinstance(about, dict) or about.get("kind") != KIND:
            raise ConfigError(f"{file} holds no learngene; fedwsa-learngene distil makes one")
        if about.get("version") != VERSION:
            raise ConfigError(
                f"{file} is of version {about.get('version')}, and this program reads "
                f"{VERSION}; distil it anew"
            )
        try:
            gene = cls(
                about["method"],
                Component.model_validate(about["model"]),
                shape_from(about["shape"]),
                about["classes"],
                tensors,
                dict(about["facts"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{file} has damaged metadata: {error}") from None
        if not isinstance(gene.classes, int):
            raise ConfigError(f"{file} has damaged metadata: classes is no number")
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() and name.startswith(("templates/", "scalers/")):
                raise ConfigError(f"{file}: {name} holds no floating-point numbers")
            if not torch.isfinite(tensor).all():
                raise ConfigError(f"{file}: {name} has values that are NaN or infinite")
        return gene

    def require(self, expected: Mapping[str, Sequence[int]]) -> None:
        """Refuse tensors that are not exactly those expected.

        Raises
        ------
        ConfigError
            Names the first that is wrong.
        """
        for name in sorted(expected.keys() | self.tensors.keys()):
            if name not in self.tensors:
                raise ConfigError(f"the {self.method} learngene lacks {name}")
            if name not in expected:
                raise ConfigError(f"the {self.method} learngene has {name}, which does not belong")
            shape = tuple(self.tensors[name].shape)
            if shape != tuple(expected[name]):
                raise ConfigError(
                    f"the {self.method} learngene has {name} of {shape}, not "
                    f"{tuple(expected[name])}"
                )
