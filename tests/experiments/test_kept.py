"""Runs kept in one file, and documents checked against them."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from experiments.commands.plot import plot
from experiments.commands.table import made, table
from experiments.reports.check import main
from fedwsa.config.component import ConfigError
from tests.given.run_folders import pair_of_groups

OFF, ON = [0.50, 0.52, 0.49, 0.51], [0.60, 0.63, 0.58, 0.62]
OPTIONS = ["--metric", "sizes,size_L,size_S,accuracy", "--baseline", "wsa=off", "--format", "md"]


@pytest.fixture
def kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Runs of two sizes in folders, and what is kept of them."""
    folder = tmp_path / "runs"
    pair_of_groups(folder, OFF, ON)
    for k, run in enumerate(sorted(folder.iterdir())):
        rows = [f"1,{size},{0.1 * j + 0.01 * k},1.0,2" for j, size in enumerate("LS", start=1)]
        text = "\n".join(["round,size,accuracy,loss,clients", *rows, ""])
        (run / "sizes.csv").write_text(text)
    (tmp_path / "docs").mkdir()
    table([str(folder), "--keep", str(tmp_path / "docs" / "data.csv")], Console())
    capsys.readouterr()
    return tmp_path / "docs" / "data.csv"


def test_what_is_kept_makes_the_table_that_the_folders_make(kept: Path) -> None:
    folders = made([str(kept.parent.parent / "runs"), *OPTIONS])
    assert made([str(kept), *OPTIONS]) == folders
    # Sizes count alike: of the first four runs L has 10, 11, 12 and 13 %, S ten more.
    assert "| 16.50 ±" in folders


def document(kept: Path, body: str) -> Path:
    words = " ".join(OPTIONS[:4])
    mark = f"<!-- fedwsa-table {kept.name} {words} -->\n{body}<!-- end -->\n"
    file = kept.parent / "page.md"
    example = "```\n<!-- fedwsa-table nothing.csv -->\n<!-- end -->\n```\n"
    file.write_text(f"# Page\n\n{mark}\n{example}\n| other |\n|---|\n| 1 |\n")
    return file


def checked(file: Path, *options: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(file.parent), *options])
    return int(ended.value.code or 0)


def test_a_number_that_the_runs_do_not_say_is_found(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = made([str(kept), *OPTIONS])
    assert checked(document(kept, text)) == 0
    assert "1 tables checked against their runs, 0 wrong; 1 others" in capsys.readouterr().out
    file = document(kept, text.replace("16.50", "16.60"))
    assert checked(file) == 1
    said = capsys.readouterr().out
    assert f"{file}:6: there is" in said
    assert "16.50" in said
    # Another table than the one that is asked for is put right.
    assert checked(file, "--write") == 0
    assert file.read_text() == document(kept, text).read_text()


def test_files_that_hold_no_runs_are_refused(kept: Path, tmp_path: Path, capsys) -> None:
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    for file in (other, tmp_path / "missing.csv"):
        with pytest.raises(ConfigError) as caught:
            made([str(file), *OPTIONS])
        assert "\n" not in str(caught.value)
    kept.write_text(kept.read_text().replace("0.1", "much"))
    with pytest.raises(ConfigError, match="is no file of kept runs"):
        made([str(kept), *OPTIONS])


def test_kept_runs_have_no_rounds_and_do_not_mix_with_folders(kept: Path) -> None:
    with pytest.raises(ConfigError, match="a file of kept runs has no rounds"):
        made([str(kept), "--metric", "rounds_to_target", "--target", "0.5", "--format", "md"])
    with pytest.raises(ConfigError, match="no one table"):
        made([str(kept), str(kept.parent.parent / "runs"), *OPTIONS])


def test_a_mark_without_an_end_and_lost_rows_are_told(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = " ".join([kept.name, *OPTIONS[:4]])
    file = kept.parent / "page.md"
    for text in (
        f"# Page\n<!-- fedwsa-table {words} -->\n| a |\n",
        f"# Page\n<!-- fedwsa-table {words} -->\nmine\n<!-- fedwsa-table {words} -->\n"
        "<!-- end -->\n",
    ):
        file.write_text(text)
        assert checked(file, "--write") == 1
        assert f"{file}:2: a table that no line <!-- end --> ends" in capsys.readouterr().err
        assert file.read_text() == text
    file.write_text("<!-- fedwsa-table nothing.csv 'a -->\n<!-- end -->\n")
    assert checked(file) == 1
    assert "No closing quotation" in capsys.readouterr().err
    # A row is lost; a row stands twice.
    *rows, last = kept.read_text().splitlines(keepends=True)
    for damaged in ("".join(rows), "".join([*rows, last, last])):
        kept.write_text(damaged)
        with pytest.raises(ConfigError, match="is no file of kept runs"):
            made([str(kept), *OPTIONS])


def test_kept_runs_count_once_and_cannot_be_drawn(kept: Path) -> None:
    assert made([str(kept), str(kept), *OPTIONS]) == made([str(kept), *OPTIONS])
    with pytest.raises(ConfigError, match="kept already"):
        table([str(kept), "--keep", str(kept)], Console())
    with pytest.raises(ConfigError, match="nothing to draw"):
        plot([str(kept)], Console())
    with pytest.raises(ConfigError, match="no run has such a size; there are L, S"):
        made([str(kept.parent.parent / "runs"), "--metric", "size_Z", "--format", "md"])
