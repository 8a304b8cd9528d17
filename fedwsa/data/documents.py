"""Texts with one label each, as sequences of tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from fedwsa.config.component import ConfigError
from fedwsa.data.examples import Examples, LabelledData, count_classes
from fedwsa.models.inputs import DocumentShape

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# tokenizers is imported where texts are read: who has the cached tensors is spared it.

_PADDING, _UNKNOWN, _FIRST = "[PAD]", "[UNK]", "[CLS]"
_BATCH = 1000


@dataclass(frozen=True, eq=False)
class DocumentData(LabelledData):
    """Texts as integers ``(N, T)``, longer ones cut off, shorter ones padded; a label each.

    Attributes
    ----------
    tokenizer : str
        What makes tokens of a text, in the JSON of the package tokenizers.
    vocabulary : int
        How many tokens there are.
    padding : int
        The token behind the end of a text.
    """

    tokenizer: str
    vocabulary: int
    padding: int

    kind: ClassVar[str] = "documents"

    @property
    def shape(self) -> DocumentShape:
        """Tokens of a text, and how many different ones there are."""
        return DocumentShape(self.train.inputs.shape[1], self.vocabulary, self.padding)

    def require(self) -> None:
        """Tokens must be integers of the vocabulary, ``(N, T)``, with a label for each text."""
        for examples in (self.train, self.test):
            inputs = examples.inputs
            if inputs.dim() != 2 or inputs.is_floating_point() or examples.labels.dim() != 1:
                raise ValueError(
                    "documents must be integers of shape (N, tokens) with N labels; these are "
                    f"{str(inputs.dtype)[6:]} of shape {tuple(inputs.shape)}"
                )
            if len(inputs) and not 0 <= int(inputs.min()) <= int(inputs.max()) < self.vocabulary:
                raise ValueError(f"tokens must be 0 to {self.vocabulary - 1}")
        super().require()

    def prepare(self, inputs: Tensor) -> Tensor:
        """Tokens as the integers that embeddings take."""
        return inputs.long()

    def facts(self) -> dict[str, Any]:
        """The tokenizer, and what of it a network must know."""
        return {
            "tokenizer": self.tokenizer,
            "vocabulary": self.vocabulary,
            "padding": self.padding,
        }

    def require_like(self, other: Mapping[str, Any]) -> None:
        """Refuse texts of another tokenizer: token 3 is to be the same word everywhere."""
        if other["tokenizer"] != self.tokenizer:
            raise ValueError("another tokenizer than the server's")


def require_tokenizers() -> None:
    """Refuse texts where what reads them is not installed."""
    if find_spec("tokenizers") is None:
        raise ConfigError(
            "dataset: texts need the package tokenizers: pip install 'fedwsa[transformers]'"
        )


def tokenized(
    texts: tuple[Sequence[str], Sequence[str]],
    parts: tuple[Examples, Examples],
    tokenizer: str | None,
    length: int,
    vocabulary: int,
) -> DocumentData:
    """A data set of texts.

    Parameters
    ----------
    texts
        Of the training set and of the test set.
    parts
        Their labels and natural clients; the inputs are numbers of texts.
    tokenizer
        Name or folder of one that transformers can load. None: the words of the training texts,
        in lower case.
    length
        Tokens of a text, see :class:`DocumentData`.
    vocabulary
        The most words, if it is made here.

    Raises
    ------
    ConfigError
        If there is no such tokenizer.
    """
    # Its threads forbid the forks by which other programs are started.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    chosen = tuple(
        [of[i] for i in part.inputs.tolist()] for of, part in zip(texts, parts, strict=True)
    )
    made, padding = _words(chosen[0], vocabulary) if tokenizer is None else _known(tokenizer)
    made.enable_truncation(length)
    made.enable_padding(
        length=length, pad_id=padding, pad_token=str(made.id_to_token(padding)), direction="right"
    )
    size = made.get_vocab_size()
    train, test = (
        replace(part, inputs=_encoded(made, of, size))
        for of, part in zip(chosen, parts, strict=True)
    )
    classes = count_classes(train.labels, test.labels)
    return DocumentData(train, test, classes, made.to_str(), size, padding)


def _encoded(tokenizer: Tokenizer, texts: Sequence[str], size: int) -> Tensor:
    """Tokens of texts, in as few bytes as they need."""
    kind = np.int16 if size <= np.iinfo(np.int16).max else np.int32
    starts = range(0, len(texts), _BATCH)
    batches = [
        np.array([e.ids for e in tokenizer.encode_batch(texts[i : i + _BATCH])], dtype=kind)
        for i in track(starts, "Reading texts", transient=True)
    ]
    return torch.from_numpy(np.concatenate(batches))


def _words(texts: Sequence[str], most: int) -> tuple[Tokenizer, int]:
    """A tokenizer of the words and signs of texts, the most frequent first; and its padding."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    made = Tokenizer(models.WordLevel(unk_token=_UNKNOWN))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [_PADDING, _UNKNOWN, _FIRST]
    trainer = trainers.WordLevelTrainer(
        vocab_size=most, special_tokens=special, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(
        single=f"{_FIRST} $A", special_tokens=[(_FIRST, special.index(_FIRST))]
    )
    return made, special.index(_PADDING)


def _known(name: str) -> tuple[Tokenizer, int]:
    """A tokenizer that transformers can load, and its padding."""
    if find_spec("transformers") is None:
        raise ConfigError(
            "dataset.tokenizer: needs the package transformers: pip install 'fedwsa[transformers]'"
        )
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"dataset.tokenizer: {name} is no folder with a tokenizer, in no cache, and cannot be "
            f"fetched: {reason}"
        ) from None
    backend = getattr(found, "backend_tokenizer", None)
    padding = found.pad_token_id if found.pad_token_id is not None else found.eos_token_id
    if backend is None or padding is None:
        lacks = "no tokenizer.json" if backend is None else "no token for padding"
        raise ConfigError(f"dataset.tokenizer: {name} has {lacks}")
    return backend, int(padding)
