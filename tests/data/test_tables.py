"""Tables as comma-separated values: what becomes of each column, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedwsa.config.component import Component, ConfigError
from fedwsa.data.loading import load, open_source
from fedwsa.data.measurements import Measurements
from fedwsa.schema.compose import compose

HEIGHTS = """\
height, site, kind, mass, note
1.5, north, tall, 10, a
0.5, south, short, 20, b
2.5, south, tall, 30, c
0.25, north, short, 40, d
"""


def component(path: Path, *words: str) -> Component:
    return compose(["dataset=csv", f"dataset.path={path}", *words]).dataset


def opened(path: Path, *words: str, **supplied: tuple[str, ...]) -> Measurements:
    data = open_source(component(path, *words), supplied).decode()
    assert isinstance(data, Measurements)
    data.require()
    return data


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "heights.csv"
    file.write_text(HEIGHTS)
    return file


def in_parts(folder: Path, train: str, test: str) -> Path:
    folder.mkdir()
    (folder / "train.csv").write_text(train)
    (folder / "test.csv").write_text(test)
    return folder


NAMED = ("dataset.label_column=kind", "dataset.id_column=site", "dataset.drop=[note]")


def test_columns_become_channels_labels_numbers_and_ids_clients(tmp_path: Path) -> None:
    parts = in_parts(tmp_path / "parts", HEIGHTS, HEIGHTS[: HEIGHTS.index("2.5")])
    data = opened(parts, *NAMED)
    expected = torch.tensor([[1.5, 10], [0.5, 20], [2.5, 30], [0.25, 40]])[:, :, None]
    assert torch.equal(data.train.inputs, expected)
    assert torch.equal(data.test.inputs, expected[:2])
    assert data.train.labels.tolist() == [1, 0, 1, 0]
    assert data.train.ids is not None
    assert data.train.ids.tolist() == [0, 1, 1, 0]
    assert (data.classes, data.names, list(data.channels)) == (
        2,
        ("short", "tall"),
        ["height", "mass"],
    )
    prepared = data.prepare(data.train.inputs)
    torch.testing.assert_close(prepared.mean((0, 2)), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(prepared.std((0, 2), correction=0), torch.ones(2))


def test_a_file_is_split_and_the_channels_are_measured_on_the_training_part(table: Path) -> None:
    data = opened(table, *NAMED, "dataset.test=0.5")
    assert (len(data.train), len(data.test)) == (2, 2)
    assert data.train.ids is not None
    assert sorted(data.train.ids.tolist()) == [0, 1]  # one of each site's two
    assert data.mean[1] == pytest.approx(float(data.train.inputs[:, 1].mean()))


def test_numbers_of_classes_keep_their_order_and_what_they_are_called(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("a,label\n" + "".join(f"{i},{i % 3 * 5 + 5}\n" for i in range(12)))
    data = opened(file)
    assert data.names == ("5", "10", "15")
    assert torch.equal(data.train.inputs[:, 0, 0] % 3, data.train.labels.float())


def test_a_constant_column_is_zero_and_not_infinite(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("a,b,y\n" + "".join(f"7,{i},{i % 2}\n" for i in range(20)))
    data = opened(file)
    assert torch.equal(data.prepare(data.train.inputs)[:, 0], torch.zeros(len(data.train), 1))


def test_what_is_cached_is_what_was_decoded(table: Path, tmp_path: Path) -> None:
    source = open_source(component(table, *NAMED, "dataset.test=0.5"))
    first, second = (load(source, tmp_path / "cache") for _ in range(2))
    assert first.facts() == second.facts()
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert first.names == ("short", "tall")


def test_small_units_are_no_constants_and_words_are_alike_but_for_blanks(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    rows = "".join(
        f"{(-1) ** i * 1e-8},{('x', 'y ')[i % 2] if i % 4 < 2 else 'xy'[i % 2]}\n"
        for i in range(20)
    )
    file.write_text(f"a,label\n{rows}")
    data = opened(file)
    assert data.names == ("x", "y")
    assert float(data.prepare(data.train.inputs).abs().min()) > 0.9


def test_numbers_and_words_as_labels_are_all_words(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("a,label\n" + "".join(f"{i},{(0, 'x')[i % 2]}\n" for i in range(20)))
    assert opened(file).names == ("0", "x")


ROWS = "a,b,label\n1,2,x\n3,4,y\n5,6,x\n7,8,y\n"


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        (ROWS.replace("5,6", "5,"), (), r"t.csv, row 2: b is missing; fill it in, leave the row"),
        (ROWS.replace("2,x", ",x").replace("4,y", ",y"), (), r"row 0: b is missing \(and 1 other"),
        (ROWS.replace("6,x", "six,x"), (), r"t.csv, row 2: b is six, no number of 32 bits"),
        (ROWS.replace("6,x", "1e99,x"), (), r"t.csv, row 2: b is 1e\+99, no number of 32 bits"),
        (ROWS.replace("label", "kind"), (), r"label_column: .*no column called label, target, "),
        (ROWS.replace("b,", "y,"), (), r"label_column: .* has 2 columns called label, target, "),
        (ROWS, ("dataset.label_column=labl",), r"label_column: .* has no labl; is it label\?"),
        (ROWS, ("dataset.id_column=site",), r"dataset.id_column: .* has no site; there are a, b"),
        (ROWS, ("dataset.drop=[c]",), r"dataset.drop: .* has no c; there are a, b, label"),
        (ROWS, ("dataset.drop=[a,b]",), r"t.csv has no column of numbers beside label"),
        (
            ROWS,
            ("dataset.label_column=a", "dataset.drop=[label]"),
            r"labels must be classes; it holds 4 values in 4 rows",
        ),
        (ROWS.replace("3,4", "3.5,4"), ("dataset.label_column=a", "dataset.drop=[label]"), "fract"),
        ("", (), r"t.csv is no table of values: No columns to parse"),
        (ROWS.replace("x\n", "x,9\n").replace("y\n", "y,9\n"), (), r"rows of more values than its"),
        (ROWS.replace("a,b,label", "a,a,label"), (), r"t.csv has 2 columns called a"),
        (
            ROWS.replace("a,b", ",b"),
            (),
            r"a column without a name, an index it seems; dataset.drop=",
        ),
        (ROWS.replace(",", ";"), (), r"must have commas between its values; these seem to be ';'"),
        (ROWS, ("dataset.drop=[label]",), r"dataset.drop: label is the label or the id of a clien"),
        (
            ROWS.replace("1,", "1700000001,")
            .replace("3,", "1700000003,")
            .replace("5,", "1700000005,")
            .replace("7,", "1700000007,"),
            (),
            r"t.csv, a differs by so little beside its size \(1.7e\+09\) that 32 bits cannot",
        ),
        ("a,label\n", (), r"t.csv has no rows"),
        ("a,label\n1,x\n1,2,3,4\n", (), r"t.csv is no table of values: "),
    ],
)
def test_a_table_that_cannot_be_is_refused_in_one_line(
    text: str, words: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "t.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        opened(file, *words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("test", "said"),
    [
        (ROWS.replace("b,", "c,"), r"test.csv has other columns than .*train.csv: b, c"),
        (ROWS.replace("a,b", "b,a"), r"test.csv has other columns .*: their order"),
        (ROWS.replace("8,y", "8,z"), r"test.csv, row 3: label z is none of x, y"),
    ],
)
def test_a_test_set_of_other_columns_or_classes_is_refused(
    test: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        opened(in_parts(tmp_path / "parts", ROWS, test))


def test_no_file_and_half_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset.path: there is no file .*/t.csv"):
        opened(tmp_path / "t.csv")
    (tmp_path / "train.csv").write_text(ROWS)
    with pytest.raises(ConfigError, match=r"dataset.path: there is no file .*/test.csv"):
        opened(tmp_path)


def test_a_node_s_own_has_the_server_s_classes(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text(ROWS)
    data = opened(file, classes=("w", "x", "y"))
    assert (len(data.train), len(data.test), data.classes) == (4, 0, 3)
    assert data.train.labels.tolist() == [1, 2, 1, 2]
    data.require_like({"channels": ["a", "b"]})
    with pytest.raises(ValueError, match=r"other columns than the server's: their order"):
        data.require_like({"channels": ["b", "a"]})
