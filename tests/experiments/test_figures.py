"""Pictures of runs: what they show, and that something is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from rich.console import Console

from experiments.commands.plot import plot
from experiments.reports.figures import draw, style
from experiments.reports.statistics import interval
from experiments.reports.tables.build import Request, Row, build
from experiments.reports.tables.collect import collect
from fedwsa.config.component import ConfigError
from tests.given.run_folders import run_folder

CURVES = {
    "off": [[0.2, 0.4, 0.5], [0.3, 0.5, 0.6]],
    "on": [[0.2, 0.5, 0.6], [0.4, 0.6, 0.8], [0.3, 0.4, 0.7]],
}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two settings, with WSA three seeds, without two; clients' scores; scopes with WSA."""
    for setting in ("equal", "differing"):
        for wsa, series in CURVES.items():
            for seed, values in enumerate(series):
                folder = tmp_path / "runs" / f"{setting}{wsa}{seed}"
                axes = {"setting": setting, "wsa": wsa}
                run_folder(folder, values, axes=axes, seed=seed)
                (folder / "client_scores.csv").write_text(
                    "round,client,accuracy,loss,examples\n1,0,0.1,2,9\n"
                    f"3,0,{0.5 + seed / 10},1,9\n3,1,0.9,1,9\n"
                )
                if wsa == "on":
                    (folder / "scopes.csv").write_text(
                        "round,layer,fused_mean,fused_std,averaged_mean,averaged_std,client_kl\n"
                        + "".join(f"{r},l.weight,0,{0.1 * r},0,{0.09 * r},0\n" for r in (1, 2, 3))
                    )
    return tmp_path / "runs"


def rows(folder: Path) -> list[Row]:
    return build(collect([str(folder)]).runs, Request()).rows


def test_a_line_is_the_mean_over_seeds_with_its_interval(runs: Path) -> None:
    found = rows(runs)
    figure = draw.curves(found, ["setting"], draw.QUANTITIES["accuracy"])
    assert figure is not None
    panel = figure.axes[0]
    assert panel.get_title() == found[0].axes["setting"]
    on = next(line for line in panel.lines if line.get_label() == "wsa on")
    assert np.asarray(on.get_ydata()) == pytest.approx([30, 50, 70])
    _, half = interval([60.0, 80.0, 70.0])
    [band] = panel.collections  # that of two seeds would fill the panel
    assert max(y for x, y in band.get_paths()[0].vertices if x == 3) == pytest.approx(70 + half)
    assert panel.get_xlabel() == "round (bands: 95 % over 3 seeds)"
    draw.plt.close(figure)


def test_rounds_that_not_all_seeds_have_are_left_out() -> None:
    rounds, mean, _ = draw.over_seeds([{1: 0.0, 2: 1.0, 4: 2.0}, {2: 3.0, 4: 4.0, 5: 9.0}])
    assert rounds.tolist() == [2, 4]
    assert mean.tolist() == [2, 3]


def test_clients_are_those_of_the_last_round(runs: Path) -> None:
    assert draw.client_scores(runs / "equaloff1").tolist() == [0.6, 0.9]
    assert len(draw.client_scores(runs)) == 0


def test_a_damaged_file_is_named_and_not_taken_for_none(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", [0.2])
    (folder / "client_scores.csv").write_text("round,client,accuracy\n2,0,high\n")
    with pytest.raises(ConfigError, match=r"run: its client_scores\.csv is damaged: .*'high'"):
        draw.clients(rows(tmp_path), [])
    (folder / "scopes.csv").write_text("round,layer,fused_std\n2,w\n")
    with pytest.raises(ConfigError, match=r"run: its scopes\.csv is damaged in line 2"):
        draw.read_scopes(folder, "fused_std")


def test_few_lines_stand_in_a_panel_and_looks_tell_them_apart_in_grey() -> None:
    groups = [
        {"data": d, "setting": s, "strategy": a, "wsa": w}
        for d in "xy"
        for s in "pq"
        for a in "abcd"
        for w in ("off", "on")
    ]
    assert style.panel_axes(groups) == ["data", "setting"]
    assert style.panel_axes([{"strategy": a, "wsa": w} for a in "ab" for w in "cd"]) == []
    many = [{"strategy": str(a), "wsa": w} for a in range(9) for w in ("off", "on")]
    assert style.panel_axes(many) == ["strategy"]
    found = style.looks([{"strategy": g["strategy"], "wsa": g["wsa"]} for g in groups[:8]])
    assert len({(look.marker, str(look.dash)) for look in found}) == 8
    assert [look.dash for look in found[::2]] == [found[0].dash] * 4  # wsa by the dash
    alone = style.looks([{"strategy": a} for a in "abcd"])
    assert len({str(look.dash) for look in alone}) == 4


def test_a_group_looks_the_same_in_all_panels_and_others_do_not(tmp_path: Path) -> None:
    for setting, wsa in (("equal", "off"), ("differing", "on")):  # one line in each panel
        folder = run_folder(tmp_path / setting, [0.2, 0.4], axes={"setting": setting, "wsa": wsa})
        (folder / "client_scores.csv").write_text("round,client,accuracy\n2,0,0.5\n2,1,0.9\n")
    found = rows(tmp_path)
    curves = draw.curves(found, ["setting"], draw.QUANTITIES["accuracy"])
    assert curves is not None
    one, other = (panel.lines[0] for panel in curves.axes)
    assert one.get_label() != other.get_label()
    assert one.get_color() != other.get_color()
    assert one.get_marker() != other.get_marker()
    with draw.plt.rc_context(style.STYLE):
        boxes = draw.clients(found, ["setting"])
        assert boxes is not None
        boxes.draw_without_rendering()
    colours = [panel.patches[0].get_facecolor()[:3] for panel in boxes.axes]
    lines = [to_rgb(line.get_color()) for line in (one, other)]
    assert colours == lines  # and the same in both pictures
    for panel in boxes.axes:  # the mark of the mean leaves the box to be seen
        (mean,) = [line for line in panel.lines if line.get_marker() == "D"]
        box = panel.patches[0].get_window_extent()
        assert mean.get_markersize() * boxes.dpi / 72 < box.height / 2
    draw.plt.close(curves)
    draw.plt.close(boxes)


def test_the_command_writes_png_and_svg(runs: Path, capsys, monkeypatch) -> None:
    plot([str(runs), "--panels", "setting", "--quantity", "accuracy"], Console(width=300))
    written = capsys.readouterr().out.split()
    names = ["accuracy", "client-accuracies", "scopes-differing", "scopes-equal", "partition-iid"]
    assert sorted(Path(w).name for w in written) == sorted(
        f"{name}.{suffix}" for name in names for suffix in ("png", "svg")
    )
    for name in names:
        picture = Image.open(runs / "figures" / f"{name}.png")
        assert np.asarray(picture.convert("L")).std() > 5  # something is drawn
        svg = (runs / "figures" / f"{name}.svg").read_text()
        assert "<text" in svg  # and text is text
    collected = collect([str(runs)])
    assert len(collected.runs) == 10  # the pictures among the runs are no runs
    assert not collected.skipped


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--panels model", "--panels model: there is no such axis; axes: setting, wsa"),
        ("--quantity speed", "--quantity speed: must be one of accuracy, loss, clients"),
        ("--out /proc/nowhere", "--out: cannot write /proc/nowhere: "),
    ],
)
def test_wrong_input_is_one_line(runs: Path, arguments: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        plot([str(runs), *arguments.split()], Console())
    assert str(refused.value).startswith(message)
