"""Tables: a row an example, a column of labels, all others numbers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedwsa.config.component import ConfigError
from fedwsa.config.nearest import nearest
from fedwsa.data.cache import place
from fedwsa.data.examples import Examples, numbered
from fedwsa.data.keys import digest, of_files
from fedwsa.data.loading import Source
from fedwsa.data.measurements import Measurements, single
from fedwsa.data.splits import TestShare, in_two

if TYPE_CHECKING:
    import pandas as pd

# pandas is imported where a table is read: who has the cached tensors is spared it.

LABELS = ("label", "target", "class", "y")
"""How a column of labels is called where none is named."""

_SHOWN = 20  # of a table's columns, in an error


def csv(
    *,
    path: str,
    label_column: str | None,
    id_column: str | None,
    drop: list[str],
    test: TestShare,
    classes: tuple[str, ...] | None = None,
) -> Source:
    """A table as comma-separated values: a file, or a folder of ``train.csv`` and ``test.csv``.

    Parameters
    ----------
    path
        The file, of which a share is for the test, or the folder. The first line names columns.
    label_column
        Of classes, as numbers or words, which are numbered in their order. None: the one that
        is called label, target, class or y.
    id_column
        Names the natural client of each row.
    drop
        Columns that are neither: they are not read.
    test
        Share of the rows of a single file that is the test set, of each natural client's or, where
        there is none, of each class's.
    classes
        Names of all classes; the table is then a node's own, all of it for training, and some
        classes may be missing.
    """
    files = _files(place(path), own=classes is not None)
    asked = (label_column, id_column, sorted(drop), test, classes, len(files))

    def decode() -> Measurements:
        tables = [_read(file) for file in files]
        wanted = {"label": label_column, "id": id_column}
        parts = [table_of(t, str(f), wanted, drop) for t, f in zip(tables, files, strict=True)]
        return measured(parts, [str(f) for f in files], test, classes)

    return Source(f"csv-{digest(asked, of_files(files))[:24]}", decode, tuple(classes or ()))


def _files(path: Path, own: bool) -> list[Path]:
    """The table, or its parts in a folder."""
    if not path.is_dir():
        if not path.is_file():
            raise ConfigError(f"dataset.path: there is no file {path}")
        return [path]
    files = [path / f"{part}.csv" for part in (("train",) if own else ("train", "test"))]
    for file in files:
        if not file.is_file():
            raise ConfigError(f"dataset.path: there is no file {file}")
    return files


def _read(file: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # values that are left out
            table = pd.read_csv(file, skipinitialspace=True, index_col=False, low_memory=False)
            head = pd.read_csv(file, skipinitialspace=True, header=None, nrows=1, dtype=str)
    except pd.errors.ParserWarning:
        raise ConfigError(f"dataset.path: {file} has rows of more values than its header") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"dataset.path: {file} is not UTF-8 text (byte {error.start})") from None
    except (ValueError, OSError) as error:  # pandas' errors of a table are ValueErrors
        reason = " ".join(str(error).split())
        raise ConfigError(f"dataset.path: {file} is no table of values: {reason}") from None
    names = [str(name) for name in head.iloc[0]]
    if twice := next((name for name in names if names.count(name) > 1 and name != "nan"), None):
        raise ConfigError(f"dataset.path: {file} has {names.count(twice)} columns called {twice}")
    if len(names) == 1 and (other := next((s for s in ";\t|" if s in names[0]), None)):
        raise ConfigError(
            f"dataset.path: {file} must have commas between its values; these seem to be {other!r}"
        )
    return table


class Part:
    """What a table holds: numbers, and the labels and ids of its rows as they stand there.

    Attributes
    ----------
    numbers : array
        float32, shape ``(rows, columns)``.
    columns : list of str
    labels, ids : array
        Shape ``(rows,)``; ids may be None.
    """

    def __init__(
        self, numbers: np.ndarray[Any, Any], columns: list[str], labels: Any, ids: Any
    ) -> None:
        self.numbers, self.columns, self.labels, self.ids = numbers, columns, labels, ids


def table_of(
    table: pd.DataFrame, name: str, wanted: dict[str, str | None], drop: Sequence[str]
) -> Part:
    """The numbers, labels and ids of a table.

    Parameters
    ----------
    name
        What to call the table in messages.
    wanted
        Names of the columns ``label`` and ``id``; None: found by its name, none.

    Raises
    ------
    ConfigError
        Names the column that is missing, and row and column of a value that is, or is no number.
    """
    columns = [str(column) for column in table.columns]
    if not len(table):
        raise ConfigError(f"dataset.path: {name} has no rows")
    if unknown := [column for column in drop if column not in columns]:
        raise ConfigError(
            f"dataset.drop: {name} has no {unknown[0]}; {nearest(unknown[0], columns)}"
        )
    label = label_column(columns, wanted["label"], name)
    if (ids := wanted["id"]) is not None and ids not in columns:
        raise ConfigError(f"dataset.id_column: {name} has no {ids}; {nearest(ids, columns)}")
    if used := next((column for column in drop if column in (label, ids)), None):
        raise ConfigError(f"dataset.drop: {used} is the label or the id of a client")
    rest = [c for c in columns if c not in (label, ids, *drop)]
    if unnamed := next((c for c in rest if c.startswith("Unnamed: ")), None):
        raise ConfigError(
            f"dataset.path: {name} has a column without a name, an index it seems; "
            f"dataset.drop=['{unnamed}'] leaves it out"
        )
    if not rest:
        raise ConfigError(f"dataset.path: {name} has no column of numbers beside {label}")
    _require_whole(table, [c for c in (label, ids, *rest) if c is not None], name)
    numbers = np.stack([_numbers(table[c], c, name) for c in rest], axis=1)
    return Part(numbers, rest, _values(table[label]), None if ids is None else _values(table[ids]))


def _values(column: pd.Series) -> np.ndarray[Any, Any]:
    """What stands in a column; words among numbers make all of them words."""
    found: np.ndarray[Any, Any] = column.to_numpy()
    if found.dtype.kind in "fiub":
        return found
    return np.array([_word(value) for value in found])


def label_column(columns: Sequence[str], wanted: str | None, name: str) -> str:
    """The column of labels: the one that is wanted, or is called as one."""
    if wanted is not None:
        if wanted not in columns:
            raise ConfigError(
                f"dataset.label_column: {name} has no {wanted}; {nearest(wanted, columns)}"
            )
        return wanted
    found = [column for column in columns if column.lower() in LABELS]
    if len(found) != 1:
        count = "no column" if not found else f"{len(found)} columns"
        shown = ", ".join(columns[:_SHOWN]) + (", ..." if len(columns) > _SHOWN else "")
        raise ConfigError(
            f"dataset.label_column: {name} has {count} called {', '.join(LABELS[:-1])} or "
            f"{LABELS[-1]}, name one; it has {shown}"
        )
    return found[0]


def _require_whole(table: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    """Refuse a table in which a value is missing."""
    missing = table[list(columns)].isna()
    if (rows := missing.any(axis=1)).any():
        row = int(rows.to_numpy().argmax())
        column = columns[int(missing.iloc[row].to_numpy().argmax())]
        many = int(rows.sum())
        others = f" (and {many - 1} other rows lack something)" if many > 1 else ""
        raise ConfigError(
            f"dataset.path: {name}, row {row}: {column} is missing{others}; fill it in, leave the "
            "row out, or name the column in dataset.drop"
        )


def _numbers(column: pd.Series, called: str, name: str) -> np.ndarray[Any, Any]:
    """A column as float32."""
    import pandas as pd

    times = column.dtype.kind in "mM"  # dates would be counts of nanoseconds
    if times or column.map(lambda value: isinstance(value, list | dict | np.ndarray)).any():
        values = np.full(len(column), np.nan)
    else:
        coerced = pd.to_numeric(column, errors="coerce")
        values = coerced.to_numpy(dtype=np.float64, na_value=np.nan)
    with np.errstate(over="ignore"):
        good = np.isfinite(values.astype(np.float32))
    if not good.all():
        row = int(np.argmin(good))
        raise ConfigError(
            f"dataset.path: {name}, row {row}: {called} is {column.iloc[row]}, no number of 32 "
            "bits; write it as numbers, or name the column in dataset.drop"
        )
    small: np.ndarray[Any, Any] = single(values, str, f"{name}, {called}").numpy()
    return small


def measured(
    parts: Sequence[Part], names: Sequence[str], test: float, classes: Sequence[str] | None
) -> Measurements:
    """A data set of a table, or of two, for training and for the test.

    Parameters
    ----------
    names
        What to call the tables in messages.
    test
        Share of a single table that is held out.
    classes
        See :func:`csv`.
    """
    first = parts[0]
    for part, name in zip(parts, names, strict=True):
        if part.columns != first.columns:
            other = sorted(set(part.columns) ^ set(first.columns)) or ["their order"]
            raise ConfigError(
                f"dataset.path: {name} has other columns than {names[0]}: {', '.join(other)}"
            )
    words = _classes(first.labels, names[0]) if classes is None else list(classes)
    examples = [_examples(p, words, n) for p, n in zip(parts, names, strict=True)]
    if classes is not None:
        train, test_set = examples[0], examples[0][torch.arange(0)]
    elif len(examples) == 1:
        train, test_set = in_two(examples[0], test)
    else:
        train, test_set = examples[0], replace(examples[1], ids=None)
    return Measurements.of(train, test_set, len(words), first.columns, words)


def _classes(labels: np.ndarray[Any, Any], name: str) -> list[str]:
    """What the classes are called, in the order of their numbers."""
    values = np.unique(labels)
    fractions = labels.dtype.kind == "f" and bool((values != np.floor(values)).any())
    if fractions or len(values) < 2 or len(values) > len(labels) // 2:
        holds = "fractions" if fractions else f"{len(values)} values in {len(labels)} rows"
        raise ConfigError(f"dataset.label_column: {name}: labels must be classes; it holds {holds}")
    return [_word(value) for value in values]


def _word(value: Any) -> str:
    """What a class is called: 1, 1.0 and "1" are one."""
    if isinstance(value, np.floating | float) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def _examples(part: Part, words: Sequence[str], name: str) -> Examples:
    numbers = {word: i for i, word in enumerate(words)}
    read = [_word(value) for value in part.labels]
    if unknown := next(((i, w) for i, w in enumerate(read) if w not in numbers), None):
        shown = ", ".join(words[:_SHOWN])
        raise ConfigError(
            f"dataset.path: {name}, row {unknown[0]}: label {unknown[1]} is none of {shown}"
        )
    labels = torch.tensor([numbers[word] for word in read])
    ids = None if part.ids is None else numbered(part.ids)
    return Examples(torch.from_numpy(part.numbers)[:, :, None].contiguous(), labels, ids)
