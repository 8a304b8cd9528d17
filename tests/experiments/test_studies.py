"""Study files: the grid that they name, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.studies.display import Clock, duration, progress_of
from experiments.studies.folder import differing, kept_apart, prepare, state_of
from experiments.studies.schema import Cell, expand, find, load, merged, selected, shipped
from fedwsa.config.component import ConfigError
from tests.given.run_folders import run_folder, write

GRID = """
base: [rounds=2, local.lr=0.1]
axes:
  setting: {equal: [], differing: [local=differing, rounds=4]}
  strategy: [fedavg, fedprox]
  wsa: [off, on]
  seed: [0, 1]
exclude:
  - {setting: equal, strategy: fedprox}
main:
  - {cell: {setting: differing, strategy: fedavg, wsa: on}, seeds: 4}
baseline: {wsa: off}
"""


def study(folder: Path, text: str = GRID) -> Path:
    file = folder / "study.yaml"
    file.write_text(text)
    return file


def test_cells_are_the_grid_without_what_is_excluded(tmp_path: Path) -> None:
    cells = expand(load(study(tmp_path)))
    # 2·2·2 minus the 2 of equal fedprox, at 2 seeds; two more seeds of the main cell, and of the
    # cell that it is compared with.
    assert len(cells) == 6 * 2 + 2 * 2
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names)
    assert not any("equal,strategy=fedprox" in name for name in names)
    assert [c.seed for c in cells] == [0] * 6 + [1] * 6 + [2] * 2 + [3] * 2  # a seed at a time
    later = {cell.group for cell in cells if cell.seed > 1}
    start = "setting=differing,strategy=fedavg,wsa="
    assert later == {f"{start}on", f"{start}off"}
    assert {cell.group for cell in cells if cell.main} == {f"{start}on"}


def test_later_overrides_replace_earlier_ones_and_values_stay_as_typed(tmp_path: Path) -> None:
    cells = {cell.name: cell for cell in expand(load(study(tmp_path)), ["local.lr=1e-2"])}
    cell = cells["setting=differing,strategy=fedavg,wsa=off,seed=0"]
    assert cell.overrides == [
        *("rounds=4", "local.lr=1e-2", "local=differing"),
        *("strategy=fedavg", "wsa=off", "seed=0"),
    ]
    assert merged(["a=1", "+b=2"], ["b=3"]) == ["a=1", "b=3"]


def test_only_takes_any_label_of_an_axis_and_all_of_several(tmp_path: Path) -> None:
    plan = load(study(tmp_path))
    cells = expand(plan)
    chosen = selected(plan, cells, ["seed=0,3", "wsa=on"])
    assert {(c.axes["seed"], c.axes["wsa"]) for c in chosen} == {("0", "on"), ("3", "on")}
    assert len(chosen) == 3 + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("baseline: {wsa: off}|basline: {wsa: off}", "no key basline; did you mean baseline?"),
        ("baseline: {wsa: off}|baseline: {was: off}", "baseline: there is no axis was; did you"),
        ("baseline: {wsa: off}|baseline: {wsa: of}", "baseline.wsa: there is no label of; did"),
        ("baseline: {wsa: off}|baseline: {seed: 0}", "baseline: seeds are what pairs are made"),
        ("strategy: fedavg, wsa: on|strategy: fedavgg", "main.strategy: there is no label fedavgg"),
        ("seeds: 4|seed: 4", "main.0.seed: extra inputs are not permitted (got '4')"),
        ("seeds: 4|seeds: many", "main.0.seeds: how many seeds, or a list of them"),
        ("seed: [0, 1]|seed: [a, b]", "axes.seed: must be a list of numbers"),
        ("wsa: [off, on]|wsa: [off, off]", "axes.wsa: a value stands there twice"),
        ("wsa: [off, on]|local.lr: [1, 2]\n  rounds: [1]", "axes: setting and rounds both set"),
        ("strategy: [fedavg, fedprox]|strategy: ['[a,b]']", "axes.strategy: '[a,b]' cannot name"),
        ("seed: [0, 1]|seed: [0, 1]\n  seed: [2]", "line 8: the key seed stands twice"),
        ("axes:|axes: [", "line 5: while parsing a flow sequence, "),
        ("base:|base: \0", "special characters are not allowed"),
        ("seed: [0, 1]|seed: 0", "axes.seed: a list of values, or LABEL: [OVERRIDES] (got 0)"),
        ("seed: [0, 1]|seed:", "axes.seed: a list of values, or LABEL: [OVERRIDES] (got nothing)"),
        ("seed: [0, 1]|seed: [[0, 1]]", "axes.seed.0: input should be a valid string"),
        ("{equal: [],|{equal: ['!x'],", "axes.setting.equal.0: string should match pattern"),
        (
            "base: [rounds=2|metric: speed\nbase: [rounds=2",
            "metric: must be one of accuracy, last5",
        ),
        ("base: [|metric: rounds_to_target\nbase: [", "metric=rounds_to_target: needs target"),
        ("base: [|target: 60\nbase: [", "target: a share between 0 and 1; did you mean 0.6?"),
    ],
)
def test_a_wrong_study_is_one_line(tmp_path: Path, change: str, message: str) -> None:
    old, _, new = change.partition("|")
    assert old in GRID
    with pytest.raises(ConfigError) as refused:
        load(study(tmp_path, GRID.replace(old, new, 1)))
    text = str(refused.value)
    assert text.startswith(f"{tmp_path}/study.yaml: ")
    assert message in text
    assert text.count("study.yaml") == 1
    assert "\n" not in text
    for internal in ("unicode string", "list[", "dict["):
        assert internal not in text


@pytest.mark.parametrize("text", ["", "base: [rounds=2]", "axes:", "axes: {}", "axes: wsa", "[]"])
def test_a_study_without_axes_is_told_what_they_look_like(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"as in `axes: \{wsa: \[off, on\], seed: \[0, 1, 2\]\}`"):
        load(study(tmp_path, text))


def test_what_an_axis_sets_is_not_overridden(tmp_path: Path) -> None:
    plan = load(study(tmp_path))
    with pytest.raises(ConfigError, match=r"seed=3: seed is an axis of the study; --only seed="):
        expand(plan, ["seed=3"])
    with pytest.raises(ConfigError, match=r"--only sed=1: there is no axis sed; did you mean seed"):
        selected(plan, expand(plan), ["sed=1"])
    with pytest.raises(ConfigError, match="--only wsa=maybe: there is no label maybe"):
        selected(plan, expand(plan), ["wsa=maybe"])


def test_studies_that_come_along_are_found_by_name_and_expand() -> None:
    assert "smoke" in shipped()
    for file in shipped().values():
        assert expand(load(file))
    with pytest.raises(ConfigError, match="there is no study smok; did you mean smoke"):
        find("smok")


def test_a_cell_is_finished_only_with_its_result(tmp_path: Path) -> None:
    assert state_of(tmp_path / "cell") == "new"
    cell = run_folder(tmp_path / "cell")
    assert state_of(cell) == "finished"
    (cell / "result.json").write_text('{"accuracy": 0.5, "se')  # the machine stopped here
    assert state_of(cell) == "interrupted"
    write(cell / "failed.json", {"reason": "it broke"})
    assert state_of(cell) == "failed"


def test_a_half_written_cell_is_cleared_but_nothing_that_no_study_made(tmp_path: Path) -> None:
    cell = Cell({"wsa": "on"}, ["wsa=on"])
    path = tmp_path / "wsa=on"
    prepare(tmp_path, cell, {"seed": 0})
    assert [p.name for p in path.iterdir()] == ["cell.json"]
    (path / "history.csv").write_text("round\n1\n")
    prepare(tmp_path, cell, {"seed": 0})
    assert [p.name for p in path.iterdir()] == ["cell.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["wsa=on"]
    (path / "cell.json").unlink()
    (path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty, and no study made it"):
        prepare(tmp_path, cell, {"seed": 0})
    assert (path / "thesis.txt").read_text() == "mine"
    finished = run_folder(tmp_path / "wsa=off", axes={"wsa": "off"})
    with pytest.raises(AssertionError):
        prepare(tmp_path, Cell({"wsa": "off"}, []), {"seed": 0})
    assert (finished / "result.json").exists()


def test_the_same_run_on_another_machine_is_the_same(tmp_path: Path) -> None:
    config = {"wsa": {"strength": 1.0}, "device": "cpu", "runtime": {"workers": 2}}
    cell = run_folder(tmp_path / "cell", config=config)
    here = {"rounds": 1, "seed": 0, "wsa": {"strength": 1}, "device": "auto"}
    assert differing(cell, here) is None
    assert differing(cell, {**here, "wsa": {"strength": 2}, "local": {"lr": 3}}) == (
        "local.lr was absent, is 3; wsa.strength was 1.0, is 2"
    )


def test_how_often_a_run_is_looked_at_makes_it_no_other_run(tmp_path: Path) -> None:
    evaluation = {"every": 1, "clients_every": 5, "batch_size": 512, "validation": 0.0}
    config = {"checkpoint": {"every": None}, "evaluation": evaluation}
    cell = run_folder(tmp_path / "cell", config=config)
    seldom = {**evaluation, "every": 7, "clients_every": 7, "batch_size": 64}
    here = {"rounds": 1, "seed": 0, "checkpoint": {"every": 3}, "evaluation": seldom}
    assert differing(cell, here) is None
    held_out = {**here, "evaluation": {**seldom, "validation": 0.1}}  # images that no client gets
    assert differing(cell, held_out) == "evaluation.validation was 0.0, is 0.1"


def test_a_folder_is_kept_to_one_study_at_a_time(tmp_path: Path) -> None:
    with (
        kept_apart(tmp_path / "s"),
        pytest.raises(ConfigError, match="another fedwsa-study is running in it"),
        kept_apart(tmp_path / "s"),
    ):
        pass
    with kept_apart(tmp_path / "s"):
        pass


def test_the_time_left_follows_from_cells_of_the_same_kind() -> None:
    clock = Clock()
    assert clock.left(["a"], [], 2) is None
    clock.finished("a", 10)
    clock.finished("a", 20)
    clock.finished("b", 60)
    # a takes 15, b 60, c (unknown) the mean of all, 30.
    assert clock.left(["a", "b", "c"], [], 1) == 15 + 60 + 30
    assert clock.left(["a"], [("b", 50), ("a", 40)], 2) == (10 + 0 + 15) / 2
    assert clock.left([], [("b", 0.0)], 2) == 60  # one cell is not made faster by two workers
    assert [duration(s) for s in (4.4, 600, 11100)] == ["4 s", "10 min", "3 h 05 min"]


def test_progress_is_read_from_the_history(tmp_path: Path) -> None:
    assert progress_of(tmp_path / "none") == (0, None)
    folder = run_folder(tmp_path / "run", [0.25, 0.5, None])
    assert progress_of(folder) == (3, 0.5)
