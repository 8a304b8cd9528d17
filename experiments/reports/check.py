"""Check the tables of documents against the runs that are kept beside them.

    python -m experiments.reports.check docs [--write]

A line ``<!-- fedwsa-table data/NAME.csv OPTIONS -->`` says of which runs the table below it is
made, and how: what follows, down to the next line ``<!-- end -->``, must be what
``fedwsa-table`` makes of them in Markdown. ``--write`` puts it there.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from experiments.commands.table import made
from fedwsa.command_line import in_one_line
from fedwsa.config.component import ConfigError
from fedwsa.runfolder.files import write_text

_MARKED = re.compile(
    r"^<!-- fedwsa-table (?P<words>.*?) -->\n(?P<body>.*?)^<!-- end -->$", re.M | re.S
)
_BEGUN = re.compile(r"^<!-- fedwsa-table ", re.M)
_FENCED = re.compile(r"^```.*?^```$", re.M | re.S)
_RULE = re.compile(r"^\|(\s*:?-+:?\s*\|)+\s*$", re.M)


@dataclass(frozen=True)
class Finding:
    """A table that is not what its runs say.

    Attributes
    ----------
    place : str
        File and line.
    there, expected : str
        The first line that differs.
    """

    place: str
    there: str
    expected: str


def expected(file: Path, words: str) -> str:
    """What ``fedwsa-table`` makes of the words of a mark in a document, in Markdown.

    Raises
    ------
    ConfigError
        If it makes nothing of them.
    """
    try:
        name, *options = shlex.split(words)
        return made([str(file.parent / name), *options, "--format", "md"])
    except (ValueError, SystemExit) as error:  # which argparse ends by
        raise ConfigError(f"{file}: fedwsa-table {words}: {error}") from None


def _marked(file: Path, text: str) -> list[re.Match[str]]:
    """The marks of a document, none of those in its examples of text.

    Raises
    ------
    ConfigError
        If one has no end.
    """
    plain = _FENCED.sub(lambda fence: re.sub(r"[^\n]", " ", fence[0]), text)
    found = list(_MARKED.finditer(plain))
    begun = [m.start() for m in _BEGUN.finditer(plain)]
    for start, of in zip_longest(begun, found):
        if of is None or of.start() != start or _BEGUN.search(of["body"]):
            line = plain.count("\n", 0, begun[0] if start is None else start) + 1
            raise ConfigError(f"{file}:{line}: a table that no line <!-- end --> ends")
    return found


def _differences(file: Path, text: str) -> Iterator[Finding]:
    for found in _marked(file, text):
        line = text.count("\n", 0, found.start("body")) + 1
        there = found["body"].strip().splitlines()
        wanted = expected(file, found["words"]).strip().splitlines()
        for k in range(max(len(there), len(wanted))):
            pair = [lines[k] if k < len(lines) else "nothing" for lines in (there, wanted)]
            if pair[0] != pair[1]:
                yield Finding(f"{file}:{line + k}", *pair)
                break


def check(folder: Path) -> tuple[int, int, list[Finding]]:
    """How many tables were checked, how many have no runs, and what is wrong."""
    checked, without, wrong = 0, 0, []
    for file in _documents(folder):
        text = file.read_text(encoding="utf-8")
        marked = len(_marked(file, text))
        checked += marked
        rules = len(_RULE.findall(text))
        without += rules - sum(bool(_RULE.search(m["body"])) for m in _marked(file, text))
        wrong += list(_differences(file, text))
    return checked, without, wrong


def write(folder: Path) -> None:
    """Put the tables there that the runs make."""
    for file in _documents(folder):
        text = new = file.read_text(encoding="utf-8")
        for found in reversed(_marked(file, text)):
            body = expected(file, found["words"])
            new = new[: found.start("body")] + body + new[found.end("body") :]
        if new != text:
            write_text(file, new)


def _documents(folder: Path) -> list[Path]:
    files = sorted(folder.rglob("*.md"))
    if not files:
        raise ConfigError(f"{folder}: there is no document (*.md), or no such folder")
    return files


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exit code 1 if a number is not what the runs say."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.reports.check", description=__doc__
    )
    parser.add_argument("folder", type=Path, help="of documents, with the kept runs below it")
    parser.add_argument("--write", action="store_true", help="put the tables there")
    with in_one_line("check"):
        given = parser.parse_args(arguments)
        if given.write:
            write(given.folder)
        checked, without, wrong = check(given.folder)
        for finding in wrong:
            print(f"{finding.place}: there is\n  {finding.there}")
            print(f"and the runs say\n  {finding.expected}")
        print(f"{checked} tables checked against their runs, {len(wrong)} wrong; {without} others")
        sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
