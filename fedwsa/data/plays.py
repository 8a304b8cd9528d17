"""Plays: text in which roles speak, in the layout of tiny Shakespeare."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from fedwsa.config.component import ConfigError
from fedwsa.data.cache import place
from fedwsa.data.examples import Examples
from fedwsa.data.loading import Source
from fedwsa.data.text import TextData, encode, hold_back, vocabulary_of, windows

Share = Annotated[float, Field(gt=0, lt=1)]

_EMPTY_LINES = re.compile(r"\n(?:[ \t]*\n)+")
_ROLE = re.compile(r"(\S.{0,58}):[ \t]*")


def play(*, path: str, sequence: PositiveInt, test: Share) -> Source:
    """Next-character prediction in a play; the roles that speak are its natural clients.

    A speech is a line ``ROLE:``, the lines that it says, and an empty line. A role's text is
    what it says in all its speeches, one after the other, cut into sequences. The last part of
    each role's text is for the test.

    Parameters
    ----------
    path
        The text file, UTF-8.
    sequence
        Characters in a sequence, T. Roles that say no more than that are left out.
    test
        Share of each role's sequences that are for the test, rounded to whole ones.
    """
    file = place(path)
    if not file.is_file():
        raise ConfigError(f"dataset.path: there is no file {file}")
    content = file.read_bytes()
    if not content.strip():
        raise ConfigError(f"dataset.path: {file} is empty")
    key = hashlib.sha256(repr((sequence, test)).encode() + content).hexdigest()[:24]

    def decode() -> TextData:
        try:
            text = content.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"dataset.path: {file} is not UTF-8 text (byte {error.start})"
            ) from None
        roles = speeches(text)
        if len(roles) < 2:
            found = f"only one role, {next(iter(roles))}" if roles else "no roles"
            raise ConfigError(
                f"dataset.path: {file} has {found}: a speech is a line 'ROLE:', then its lines, "
                "then an empty line"
            )
        vocabulary = vocabulary_of(text)
        return _examples(roles, vocabulary, sequence, test)

    return Source(f"play-{key}", decode)


def speeches(text: str) -> dict[str, str]:
    """What each role says, in the order in which they first speak, each line ended.

    A paragraph that begins with no role goes on with the speech before it; what stands before
    the first role, a title, say, is left out.
    """
    said: dict[str, list[str]] = {}
    role = None
    for paragraph in _EMPTY_LINES.split(text.strip("\n")):
        first, _, rest = paragraph.partition("\n")
        if found := _ROLE.fullmatch(first):
            role, paragraph = found[1], rest
        if role is not None and paragraph:
            said.setdefault(role, []).append(f"{paragraph}\n")
    return {role: "".join(lines) for role, lines in said.items()}


def _examples(roles: dict[str, str], vocabulary: str, length: int, share: float) -> TextData:
    """The sequences of all roles; those of a role have its number, counted where there are any."""
    trains, tests = [], []
    for said in roles.values():
        beginning, end = hold_back(encode(said, vocabulary), length, share)
        if len(beginning) > length:
            trains.append(windows(beginning, length))
            tests.append(windows(end, length))
    if not trains:
        longest = max(map(len, roles.values()))
        raise ConfigError(
            f"dataset.sequence={length}: no role says as much; the most that one says is "
            f"{longest} characters"
        )
    train, test = _joined(trains), _joined(tests)
    if not len(test):
        raise ConfigError(
            f"dataset.test={share:g}: no role says enough for a test sequence of {length} "
            "characters; take a larger share or a shorter sequence"
        )
    return TextData(train, test, len(vocabulary), vocabulary)


def _joined(of_roles: list[tuple[Tensor, Tensor]]) -> Examples:
    counts = torch.tensor([len(inputs) for inputs, _ in of_roles])
    inputs, labels = (torch.cat(tensors) for tensors in zip(*of_roles, strict=True))
    return Examples(inputs, labels, torch.arange(len(counts)).repeat_interleave(counts))
