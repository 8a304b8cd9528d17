"""Texts with a label each, from the layouts of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from fedwsa.config.component import ConfigError
from fedwsa.data.documents import DocumentData
from fedwsa.data.loading import load, open_source
from fedwsa.models.inputs import DocumentShape
from fedwsa.schema.compose import compose

WORD, WHOLE = datasets.Value("string"), datasets.Value("int64")
CLASS = datasets.ClassLabel(names=["bad", "good"])
TRAIN = {
    "text": ["A good, good film!", "bad", "a film", "no film no"] * 2,
    "label": [1, 0, 1, 0] * 2,
    "writer": ["b", "a", "b", "a"] * 2,
}
TEST = {"text": ["a good book", "no"], "label": [1, 0], "writer": ["c", "c"]}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


def written(folder: Path, kinds: dict, **splits: dict) -> Path:
    """A folder of parquet files with these columns of TRAIN and TEST."""
    (folder / "data").mkdir(parents=True)
    for split, columns in splits.items():
        chosen = {name: columns[name] for name in kinds}
        table = datasets.Dataset.from_dict(chosen, features=datasets.Features(kinds))
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def opened(folder: Path, *words: str) -> DocumentData:
    words = ("dataset=hub", f"dataset.name={folder}", "dataset.sequence=6", *words)
    data = open_source(compose(list(words)).dataset).decode()
    data.require()
    assert isinstance(data, DocumentData)
    return data


def test_words_are_numbered_by_their_frequency_in_the_training_texts(tmp_path: Path) -> None:
    data = opened(written(tmp_path / "d", {"text": WORD, "label": CLASS}, train=TRAIN, test=TEST))
    # film 3, a 2, good 2, no 2, and once each ! , bad in every second text; 0 to 2 are special.
    known = Tokenizer.from_str(data.tokenizer).get_vocab()
    order = sorted(known, key=known.__getitem__)
    assert order == ["[PAD]", "[UNK]", "[CLS]", "film", "a", "good", "no", "!", ",", "bad"]
    assert data.shape == DocumentShape(6, 10, 0)
    assert data.train.inputs[:4].tolist() == [
        [2, 4, 5, 8, 5, 3],  # longer: "!" is cut off
        [2, 9, 0, 0, 0, 0],
        [2, 4, 3, 0, 0, 0],
        [2, 6, 3, 6, 0, 0],
    ]
    assert data.test.inputs.tolist() == [[2, 4, 5, 1, 0, 0], [2, 6, 0, 0, 0, 0]]
    assert data.train.labels.tolist() == TRAIN["label"]
    assert data.prepare(data.test.inputs).dtype == torch.int64


def test_nothing_of_a_test_that_is_a_share_is_in_the_vocabulary(tmp_path: Path) -> None:
    texts = {"text": [f"word{i}" for i in range(20)], "label": [i % 2 for i in range(20)]}
    folder = written(tmp_path / "d", {"text": WORD, "label": CLASS}, train=texts)
    data = opened(folder, "dataset.test=0.25")
    assert (len(data.train), len(data.test), data.vocabulary) == (15, 5, 15 + 3)
    assert set(data.test.inputs[:, 1].tolist()) == {1}
    few = opened(folder, "dataset.test=0.25", "dataset.vocabulary=9")
    assert few.vocabulary == 9


def test_writers_are_clients_and_words_are_labels(tmp_path: Path) -> None:
    kinds = {"text": WORD, "mood": WORD, "writer": WORD}
    parts = [{**p, "mood": [CLASS.names[i] for i in p["label"]]} for p in (TRAIN, TEST)]
    folder = written(tmp_path / "d", kinds, train=parts[0], test=parts[1])
    data = opened(folder, "dataset.label_column=mood", "dataset.id_column=writer")
    assert data.train.labels.tolist() == TRAIN["label"]
    assert data.train.ids is not None
    assert data.train.ids.tolist() == [1, 0, 1, 0] * 2


def test_words_called_label_are_classes_without_being_named(tmp_path: Path) -> None:
    parts = [{**p, "label": [CLASS.names[i] for i in p["label"]]} for p in (TRAIN, TEST)]
    kinds = {"text": WORD, "label": WORD}
    data = opened(written(tmp_path / "d", kinds, train=parts[0], test=parts[1]))
    assert data.train.labels.tolist() == TRAIN["label"]


def test_the_cache_gives_the_same_texts(tmp_path: Path) -> None:
    folder = written(tmp_path / "d", {"text": WORD, "label": WHOLE}, train=TRAIN, test=TEST)
    config = compose(["dataset=hub", f"dataset.name={folder}", "dataset.sequence=6"])
    one, two = (load(open_source(config.dataset), tmp_path / "cache") for _ in range(2))
    assert len(list((tmp_path / "cache" / "data").iterdir())) == 1
    assert torch.equal(one.train.inputs, two.train.inputs)
    assert one.facts() == two.facts() == opened(folder).facts()


@pytest.mark.parametrize("pad", ["<pad>", None])
def test_a_pretrained_tokenizer_makes_the_tokens_that_transformers_makes(
    pad: str | None, tmp_path: Path
) -> None:
    data = opened(written(tmp_path / "d", {"text": WORD, "label": CLASS}, train=TRAIN, test=TEST))
    made = Tokenizer.from_str(data.tokenizer)
    made.no_padding(), made.no_truncation()
    made.add_special_tokens(["<pad>", "<end>"])
    own = PreTrainedTokenizerFast(tokenizer_object=made, pad_token=pad, eos_token="<end>")
    own.save_pretrained(tmp_path / "own")
    found = opened(tmp_path / "d", f"dataset.tokenizer={tmp_path / 'own'}")
    own.pad_token = pad or "<end>"
    expected = own(TRAIN["text"], padding="max_length", truncation=True, max_length=6)["input_ids"]
    assert found.train.inputs.tolist() == expected
    assert found.shape == DocumentShape(6, 12, 11 if pad is None else 10)


@pytest.mark.parametrize(
    ("kinds", "words", "message"),
    [
        (
            {"text": WORD, "writer": WORD, "label": CLASS},
            ["dataset.text_column=txt"],
            r"dataset\.text_column: there is no txt; it has text \(string\), writer",
        ),
        (
            {"text": WORD, "label": CLASS},
            ["dataset.text_column=label"],
            r"dataset\.text_column: label holds no texts; it has",
        ),
        (
            {"text": WORD, "writer": WORD, "label": CLASS},
            [],
            r"dataset\.text_column: there are 2 columns of texts, name one: text, writer$",
        ),
        (
            {"text": WORD, "number": WHOLE, "label": CLASS},
            [],
            r"text is A good, good film!, no number .*, or a text in dataset\.text_column$",
        ),
        (
            {"text": WORD, "label": WORD},
            ["dataset.text_column=label", "dataset.label_column=label"],
            r"dataset\.text_column: label is the label or the id of a client",
        ),
        (
            {"text": WORD, "label": CLASS},
            ["dataset.tokenizer=nowhere/at-all"],
            r"dataset\.tokenizer: nowhere/at-all is no folder with a tokenizer",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(
    kinds: dict, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words_of = kinds["label"] is WORD
    parts = [
        {
            **p,
            "number": list(range(len(p["text"]))),
            "label": [CLASS.names[i] if words_of else i for i in p["label"]],
        }
        for p in (TRAIN, TEST)
    ]
    folder = written(tmp_path / "d", kinds, train=parts[0], test=parts[1])
    with pytest.raises(ConfigError, match=message) as caught:
        opened(folder, *words)
    assert "\n" not in str(caught.value)


def test_a_text_that_is_missing_is_named(tmp_path: Path) -> None:
    some = {**TRAIN, "text": [*TRAIN["text"][:-1], None]}
    folder = written(tmp_path / "d", {"text": WORD, "label": CLASS}, train=some, test=TEST)
    with pytest.raises(ConfigError, match=r"text_column: .*\[train\], row 7: text is missing"):
        opened(folder)
