"""Text as sequences of characters, in which each next character is to be predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedwsa.data.examples import LabelledData
from fedwsa.models.inputs import TextShape


@dataclass(frozen=True, eq=False)
class TextData(LabelledData):
    """Sequences of characters ``(N, T)``; the label at each position is the character after it.

    Attributes
    ----------
    vocabulary : str
        Its characters in the order of their tokens, sorted; as many as there are classes.
    """

    vocabulary: str

    kind: ClassVar[str] = "text"

    @property
    def shape(self) -> TextShape:
        """Characters in a sequence."""
        return TextShape(*self.train.inputs.shape[1:])

    def prepare(self, inputs: Tensor) -> Tensor:
        """Tokens, stored in a byte where that is enough, as the integers that embeddings take."""
        return inputs.long()

    def facts(self) -> dict[str, Any]:
        """The vocabulary."""
        return {"vocabulary": self.vocabulary}


def vocabulary_of(text: str) -> str:
    """The characters of a text, each once, sorted."""
    return "".join(sorted(set(text)))


def encode(text: str, vocabulary: str) -> Tensor:
    """The tokens of a text, shape ``(len(text),)``: bytes if the vocabulary fits them, or int32.

    Raises
    ------
    ValueError
        Names a character that the vocabulary lacks.
    """
    known, codes = _codes(vocabulary), _codes(text)
    tokens = np.searchsorted(known, codes)
    missing = known[np.minimum(tokens, len(known) - 1)] != codes
    if missing.any():
        raise ValueError(f"the vocabulary has no {text[int(missing.argmax())]!r}")
    kind = np.uint8 if len(vocabulary) <= 256 else np.int32
    return torch.from_numpy(tokens.astype(kind))


def _codes(text: str) -> np.typing.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def windows(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Cut a text into sequences, one after the other; what does not fill the last is left out.

    Parameters
    ----------
    tokens
        Shape ``(n,)``.
    length
        T.

    Returns
    -------
    inputs, labels : Tensor, Tensor
        Shape ``(N, T)`` with N = ⌊(n − 1)/T⌋, labels int64: the token after each.
    """
    count = max(0, (len(tokens) - 1) // length)
    inputs = tokens[: count * length].view(count, length)
    return inputs, tokens[1 : 1 + count * length].view(count, length).long()


def hold_back(tokens: Tensor, length: int, share: float) -> tuple[Tensor, Tensor]:
    """Split a text into its beginning and its end, which holds a share of its sequences.

    The end is as long as its sequences need, a whole number of them; the two have no character
    in common, so that none is predicted in both.
    """
    count = max(0, (len(tokens) - 1) // length)
    held = round(count * share)
    cut = len(tokens) - (held * length + 1 if held else 0)
    return tokens[:cut], tokens[cut:]
