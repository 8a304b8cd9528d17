"""Text: plays, their sequences, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedwsa.config.component import ConfigError
from fedwsa.data.examples import Examples
from fedwsa.data.loading import load
from fedwsa.data.plays import play, speeches
from fedwsa.data.text import TextData, encode, hold_back, vocabulary_of, windows

PLAY = """A play in one act

Ann:
one two
three

BOB SMITH:
four: five

and six

Ann:
seven
"""


def test_a_role_s_text_is_all_that_it_says() -> None:
    # What stands before the first role is left out, a paragraph without a role goes on, and a
    # colon within a line names nobody.
    expected = {"Ann": "one two\nthree\nseven\n", "BOB SMITH": "four: five\nand six\n"}
    assert speeches(PLAY) == expected
    assert speeches(PLAY.replace("\n\n", "\n \t\n\n")) == expected
    assert speeches("Ann:\n\nBob:\nyes\n") == {"Bob": "yes\n"}
    assert speeches("no one\n\nspeaks: here\n") == {}


def test_tokens_are_places_in_the_sorted_characters() -> None:
    vocabulary = vocabulary_of("hello\n")
    assert vocabulary == "\nehlo"
    assert encode("hole", vocabulary).tolist() == [2, 4, 3, 1]
    assert encode("hole", vocabulary).dtype == torch.uint8
    with pytest.raises(ValueError, match="the vocabulary has no 'z'"):
        encode("haze", vocabulary_of("hello a"))
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    assert encode(many, many).tolist() == list(range(300))


def test_the_label_at_each_position_is_the_next_character() -> None:
    # Ten tokens hold three sequences of three: the last label is token 9.
    inputs, labels = windows(torch.arange(10, dtype=torch.uint8), 3)
    assert inputs.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert labels.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert labels.dtype == torch.int64
    inputs, labels = windows(torch.arange(9), 3)  # nothing comes after token 8
    assert inputs.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert windows(torch.arange(3), 3)[0].shape == (0, 3)


@given(st.integers(1, 400), st.integers(1, 30), st.floats(0.01, 0.99))
def test_training_and_test_have_no_character_in_common(n: int, length: int, share: float) -> None:
    train, test = hold_back(torch.arange(n), length, share)
    assert torch.equal(torch.cat([train, test]), torch.arange(n))
    sequences = (n - 1) // length
    held = len(windows(test, length)[0])
    assert held == round(sequences * share)
    # The end is whole sequences; the character between the two costs the beginning at most one.
    assert sequences - held - 1 <= len(windows(train, length)[0]) <= sequences - held
    seen = {int(t) for part in windows(train, length) for t in part.flatten()}
    assert seen.isdisjoint(int(t) for part in windows(test, length) for t in part.flatten())


def written(folder: Path, text: str | bytes) -> str:
    file = folder / "play.txt"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(file)


def long_play() -> tuple[str, dict[str, str]]:
    """Three roles whose every character tells where it stands, and one that says one word."""
    letters = np.random.default_rng(0).choice(list("abcdefgh \n"), 900)
    said = {f"Role {i}": "x" + "".join(letters[300 * i : 300 * (i + 1)]) for i in range(3)}
    said = {role: " ".join(text.split()) for role, text in said.items()}
    said = {"Mute": "oh", **said}
    return "\n\n".join(f"{role}:\n{text}" for role, text in said.items()), said


def test_a_play_becomes_sequences_with_the_role_as_natural_client(tmp_path: Path) -> None:
    text, said = long_play()
    source = play(path=written(tmp_path, text), sequence=20, test=0.25)
    data = load(source, tmp_path / "cache")
    assert isinstance(data, TextData)
    assert (data.vocabulary, data.classes) == (vocabulary_of(text), len(set(text)))
    assert (data.shape, data.kind, data.strata) == ((20,), "text", 3)
    roles = [f"{words}\n" for role, words in said.items() if role != "Mute"]
    for part in (data.train, data.test):
        assert part.ids.dtype == torch.int64
        # Roles are numbered from 0 in the order in which they speak; who says less than a
        # sequence has none.
        assert part.ids.unique().tolist() == [0, 1, 2]
        assert torch.equal(part.strata, part.ids)
        for inputs, labels, role in zip(part.inputs, part.labels, part.ids, strict=True):
            sentence = "".join(data.vocabulary[t] for t in [*inputs.tolist(), int(labels[-1])])
            assert sentence in roles[role]
            assert inputs[1:].tolist() == labels[:-1].tolist()
    # The test has the end of what each role says.
    for role, words in enumerate(roles):
        last = data.test.labels[data.test.ids == role][-1]
        assert words.endswith("".join(data.vocabulary[t] for t in last.tolist()))
    counts = [(len(words) - 1) // 20 for words in roles]
    assert data.test.ids.bincount().tolist() == [round(0.25 * c) for c in counts]
    again = load(source, tmp_path / "cache")  # from the cache
    assert torch.equal(again.train.ids, data.train.ids)
    assert torch.equal(again.prepare(again.test.inputs), data.test.inputs.long())


def test_line_ends_and_byte_order_marks_are_no_characters(tmp_path: Path) -> None:
    text, _ = long_play()
    foreign = b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()
    data = play(path=written(tmp_path, foreign), sequence=20, test=0.25).decode()
    plain = play(path=written(tmp_path, text), sequence=20, test=0.25).decode()
    assert data.vocabulary == plain.vocabulary
    assert torch.equal(data.train.inputs, plain.train.inputs)


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("", {}, r"dataset.path: .*play.txt is empty"),
        (" \n\n", {}, r"dataset.path: .*play.txt is empty"),
        (b"Ann:\n\xff\xfe", {}, r"dataset.path: .*play.txt is not UTF-8 text \(byte 5\)"),
        (
            "All is prose.\n\nNobody: speaks.\n",
            {},
            r"dataset.path: .*play.txt has no roles: a speech is a line 'ROLE:', then its lines",
        ),
        (
            PLAY,
            {"sequence": 50},
            "dataset.sequence=50: no role says as much; the most that one says is 20 characters",
        ),
        (PLAY, {"test": 0.01}, "dataset.test=0.01: no role says enough for a test sequence of 5"),
    ],
)
def test_a_file_that_is_no_play_is_refused(
    tmp_path: Path, text: str | bytes, changes: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        play(**{"path": written(tmp_path, text), "sequence": 5, "test": 0.3, **changes}).decode()
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset.path: there is no file .*nowhere.txt"):
        play(path=str(tmp_path / "nowhere.txt"), sequence=5, test=0.3)
    with pytest.raises(ConfigError, match=r"dataset.path: there is no file"):
        play(path=str(tmp_path), sequence=5, test=0.3)


def test_text_is_neither_shifted_nor_mirrored(tmp_path: Path) -> None:
    data = play(path=written(tmp_path, PLAY), sequence=5, test=0.3).decode()
    assert data.augmentation("none") is None
    with pytest.raises(ConfigError, match=r"dataset.augment=crop_flip: not for text"):
        data.augmentation("crop_flip")


def test_sequences_without_natural_clients_are_all_alike_to_a_partition_by_label() -> None:
    some = Examples(torch.zeros(3, 4, dtype=torch.uint8), torch.ones(3, 4, dtype=torch.int64))
    assert some.strata.tolist() == [0, 0, 0]
    assert some[torch.tensor([2])].ids is None
