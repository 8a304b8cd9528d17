"""Tables of run folders: groups, pairs, tests, formats, and what is not a run."""

from __future__ import annotations

import math
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from experiments.commands.table import table
from experiments.reports.statistics import holm, paired
from experiments.reports.tables.build import Request, build
from experiments.reports.tables.collect import collect, differences
from experiments.reports.tables.formats import to_latex, to_markdown
from experiments.reports.tables.metrics import METRICS
from fedwsa.config.component import ConfigError
from tests.given.run_folders import pair_of_groups, run_folder, write
from tests.given.tables import as_csv, shown

OFF, ON = [0.50, 0.52, 0.49, 0.51], [0.60, 0.63, 0.58, 0.62]


def test_runs_that_differ_in_the_seed_alone_are_one_row(tmp_path: Path, capsys) -> None:
    pair_of_groups(tmp_path, OFF, ON)
    off, on = as_csv(capsys, str(tmp_path), "--baseline", "wsa=off")
    assert (off["wsa"], off["seeds"], on["wsa"], on["seeds"]) == ("off", "4", "on", "4")
    assert float(off["accuracy"]) == pytest.approx(sum(OFF) / 4)
    expected = paired(ON, OFF)
    assert float(on["difference"]) == pytest.approx(expected.difference)
    assert float(on["p_t"]) == float(on["p_t_holm"]) == pytest.approx(expected.p_t)
    assert off["difference"] == on["p_wilcoxon"] == ""  # the baseline; and four seeds are too few


def test_what_sets_runs_apart_is_read_from_their_configurations() -> None:
    runs = [
        {
            "rounds": 5,
            "seed": seed,
            "strategy._target_": f"flwr.serverapp.strategy.{name}",
            "strategy.args.proximal_mu": mu,
            "wsa.enabled": wsa,
            "wsa.strength": 10.0,
            "local.lr_factors": [1.0] if equal else [0.3, 3.0],
            "local.weight_decays": None if equal else [0.0, 0.01],
        }
        for seed, (name, mu, wsa, equal) in enumerate(
            [
                ("FedAvg", None, False, True),
                ("FedProx", 0.1, True, True),
                ("FedProx", 1.0, True, False),
            ]
        )
    ]
    # FedAvg has no proximal_mu, FedProx two: an axis; weight_decays says no more than lr_factors.
    assert differences(runs) == [
        {"strategy": "FedAvg", "strategy.args.proximal_mu": "-", "wsa": "off"}
        | {"local.lr_factors": "[1.0]"},
        {"strategy": "FedProx", "strategy.args.proximal_mu": "0.1", "wsa": "on"}
        | {"local.lr_factors": "[1.0]"},
        {"strategy": "FedProx", "strategy.args.proximal_mu": "1.0", "wsa": "on"}
        | {"local.lr_factors": "[0.3, 3.0]"},
    ]


def test_runs_without_cells_are_told_by_their_configurations(tmp_path: Path, capsys) -> None:
    for seed in (0, 1):
        for wsa in (False, True):
            config = {"wsa": {"enabled": wsa}, "runtime": {"workers": seed}}
            run_folder(
                tmp_path / f"{seed}{wsa}", [0.5 + seed / 10 + wsa / 100], config=config, seed=seed
            )
    rows = as_csv(capsys, str(tmp_path), "--baseline", "wsa=off")
    assert [(row["wsa"], row["seeds"]) for row in rows] == [("off", "2"), ("on", "2")]
    assert float(rows[1]["difference"]) == pytest.approx(0.01)


def test_what_a_run_does_not_have_is_a_dash() -> None:
    runs = [
        {"skew._target_": None, "strategy.args": {}, "clients.deadline": None},
        {"skew._target_": "a.Noise", "strategy.args.mu": 1, "clients.deadline": 5.0},
        {"strategy.args.mu": 2, "clients.deadline": 5.0},
    ]
    assert differences(runs) == [
        {"skew": "-", "strategy.args.mu": "-", "clients.deadline": "-"},
        {"skew": "Noise", "strategy.args.mu": "1", "clients.deadline": "5.0"},
        {"skew": "-", "strategy.args.mu": "2", "clients.deadline": "5.0"},
    ]


def test_how_often_a_run_is_evaluated_or_saved_is_no_axis(tmp_path: Path) -> None:
    for seed, every in enumerate((1, 2)):
        for share in (0.0, 0.1):
            evaluation = {"every": every, "clients_every": every, "batch_size": 64 * every}
            config = {
                "evaluation": {**evaluation, "validation": share},
                "checkpoint": {"every": None if seed else every},
            }
            run_folder(tmp_path / f"{seed}{share}", config=config, seed=seed)
    runs = collect([str(tmp_path)]).runs
    assert {tuple(run.axes.items()) for run in runs} == {
        (("evaluation.validation", "0.0"),),
        (("evaluation.validation", "0.1"),),
    }


def test_cells_of_two_studies_with_the_same_words_are_not_mixed(tmp_path: Path) -> None:
    for study, rounds in (("a", 1), ("b", 2)):
        for seed in (0, 1):
            folder = tmp_path / study / str(seed)
            run_folder(folder, [0.5] * rounds, axes={"wsa": "off"}, seed=seed)
    runs = collect([str(tmp_path)]).runs
    assert {run.axes["rounds"] for run in runs} == {"1", "2"}


def test_bold_is_what_the_corrected_test_finds_and_nothing_else(tmp_path: Path, capsys) -> None:
    # Two families of one comparison each would both be below 0.05; corrected together one is not.
    weak = [0.55, 0.53, 0.53, 0.515]
    pair_of_groups(tmp_path, OFF, ON, setting="strong")
    pair_of_groups(tmp_path, OFF, weak, setting="weak")
    p_strong, p_weak = paired(ON, OFF).p_t, paired(weak, OFF).p_t
    assert p_strong < 0.05 / 2
    assert 0.05 < holm([p_strong, p_weak, p_weak])[1] < 0.2
    text = shown(capsys, str(tmp_path), "--baseline", "wsa=off", "--format", "md")
    bold = [line for line in text.splitlines() if "**" in line]
    assert len(bold) == (1 if p_weak > 0.05 else 2)
    assert bold[0].startswith("| strong | on | 4 |")
    assert text.count("(Holm) for 2 comparisons in the table") == 1


def test_only_comparisons_named_as_main_are_corrected_and_bold(tmp_path: Path) -> None:
    for setting in ("one", "two", "three"):
        pair_of_groups(tmp_path, OFF, ON, setting=setting)
    request = Request(baseline={"wsa": "off"}, main=[{"setting": "two", "wsa": "on"}])
    built = build(collect([str(tmp_path)]).runs, request)
    alone = paired(ON, OFF).p_t
    for row in built.rows:
        if row.axes == {"setting": "two", "wsa": "on"}:
            assert row.holm_t == pytest.approx(alone)  # a family of one
            assert row.significant(None)
        else:
            assert math.isnan(row.holm_t)
            assert not row.significant(None)
    markdown = to_markdown(built)
    assert markdown.count("**") == 2
    assert alone < 0.001
    assert markdown.count("| (<0.001) |") == 2  # the others: not corrected, in brackets


def test_from_eight_seeds_on_the_signed_rank_test_stands_beside(tmp_path: Path, capsys) -> None:
    off = [0.5 + i / 100 for i in range(8)]
    on = [value + (i + 1) / 1000 for i, value in enumerate(off)]
    pair_of_groups(tmp_path, off, on)
    row = as_csv(capsys, str(tmp_path), "--baseline", "wsa=off", "--test", "wilcoxon")[1]
    assert float(row["p_wilcoxon"]) == pytest.approx(2 / 2**8)
    assert "p, Wilcoxon" in shown(capsys, str(tmp_path), "--baseline", "wsa=off")


def test_runs_that_ended_early_are_compared_if_the_rounds_they_have_are_alike(
    tmp_path: Path, capsys
) -> None:
    for seed in (0, 1, 2):
        for wsa, rounds in (("off", 4), ("on", 2 + seed % 2)):
            place = tmp_path / f"{wsa}{seed}"
            history = [0.1 * seed + 0.1] * rounds
            run_folder(place, history, axes={"wsa": wsa}, config={"rounds": 9}, seed=seed)
    _, on = as_csv(capsys, str(tmp_path), "--baseline", "wsa=off")
    assert float(on["difference"]) == pytest.approx(0)


@pytest.mark.parametrize("change", ["cohort", "partition"])
def test_pairs_that_are_not_the_same_federation_are_not_compared(
    tmp_path: Path, capsys, change: str
) -> None:
    for seed in (0, 1):
        run_folder(tmp_path / f"off{seed}", [0.5 + seed / 9], axes={"wsa": "off"}, seed=seed)
        other = {change: "7 8" if change == "cohort" else "cd"}
        run_folder(tmp_path / f"on{seed}", [0.6], axes={"wsa": "on"}, seed=seed, **other)
    text = shown(capsys, str(tmp_path), "--baseline", "wsa=off")
    assert f"wsa=on: not compared: its {change}s are not those of the baseline (seed 0, 1)" in text
    assert ("cohorts: differ between runs of a seed" in text) == (change == "cohort")


def test_failed_cells_are_shown_and_what_is_no_run_is_named(tmp_path: Path, capsys) -> None:
    pair_of_groups(tmp_path / "s", OFF[:2], ON[:2])
    failed = tmp_path / "s" / "on,1"
    (failed / "result.json").unlink()
    write(failed / "failed.json", {"reason": "round 1: all 4 clients failed in training"})
    (tmp_path / "s" / "off,1" / "result.json").unlink()
    run_folder(tmp_path / "s" / "old", axes={"wsa": "old"}, made_by="0.0.9")
    half = run_folder(tmp_path / "s" / "half", axes={"wsa": "half"})
    (half / "result.json").write_text('{"accuracy": 0.')
    other = run_folder(tmp_path / "s" / "other", axes={"wsa": "other"})
    write(other / "result.json", {"score": 3})
    for name, text in (("short", "round,accuracy\n1\n"), ("words", "round,accuracy\n1,much\n")):
        damaged = run_folder(tmp_path / "s" / name, axes={"wsa": name})
        (damaged / "history.csv").write_text(text)
    table([str(tmp_path / "s"), "--baseline", "wsa=off"], Console(width=200))
    printed = capsys.readouterr()
    assert "failed: wsa=on seed=1: round 1: all 4 clients failed in training" in printed.out
    assert " 1/2 " in printed.out
    assert "an interval and a test need at least two seeds" in printed.out
    lines = printed.err.splitlines()
    assert all(line.startswith("fedwsa-table: skipped ") for line in lines)
    for folder, why in (
        ("off,1", "the run is not finished"),
        ("old", "fedwsa 0.0.9 made it, this is "),
        ("half", "its result.json cannot be read"),
        ("other", "its result.json has no accuracy: another version of fedwsa made it"),
        ("short", "its history.csv is damaged in line 2"),
        ("words", "its history.csv is damaged: could not convert string to float: 'much'"),
    ):
        assert any(f"{folder}: {why}" in line for line in lines), printed.err


def test_metrics_that_count_until_a_target(tmp_path: Path, capsys) -> None:
    columns = {
        "bytes_down": [100, 100, 100, 100],
        "bytes_up": [10, 10, 10, 10],
        "simulated_seconds": [1.5, 1.5, 2.0, 9.0],
        "client_accuracy_std": [None, 0.2, None, 0.1],
    }
    # Not evaluated in the first round; at the target in the third.
    run_folder(tmp_path / "0", [None, 0.4, 0.6, 0.5], axes={}, columns=columns)
    run_folder(tmp_path / "1", [0.1, 0.2, 0.3, 0.4], axes={}, seed=1, columns=columns)
    names = "rounds_to_target,bytes_to_target,seconds_to_target,client_std,last5,accuracy"
    (row,) = as_csv(capsys, str(tmp_path), "--metric", names, "--target", "0.55")
    assert (row["rounds_to_target"], row["rounds_to_target_n"]) == ("3.0", "1")
    assert float(row["bytes_to_target"]) == 330
    assert float(row["seconds_to_target"]) == 5
    assert float(row["client_std"]) == pytest.approx(0.1)  # the last that there is
    assert float(row["last5"]) == pytest.approx((0.5 + 0.25) / 2)
    assert float(row["accuracy"]) == pytest.approx(0.45)
    assert "(1 of 2)" in shown(capsys, str(tmp_path), "--metric", names, "--target", "0.55")


def test_a_strategy_without_a_global_model_has_only_its_clients(tmp_path: Path, capsys) -> None:
    columns = {"client_accuracy_mean": [None, 0.8]}
    run_folder(tmp_path / "0", [None, None], axes={}, columns=columns)
    (row,) = as_csv(capsys, str(tmp_path), "--metric", "accuracy,client_mean")
    assert (row["accuracy"], row["accuracy_n"], row["client_mean"]) == ("", "0", "0.8")


def test_latex_escapes_and_is_booktabs(tmp_path: Path) -> None:
    pair_of_groups(tmp_path, OFF, ON, setting="a_b&c")
    built = build(collect([str(tmp_path)]).runs, Request(baseline={"wsa": "off"}))
    lines = to_latex(built).splitlines()
    body = [line for line in lines if not line.startswith("%")]
    assert body[:2] == [r"\begin{tabular}{llrrrr}", r"\toprule"]
    assert body[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert r"a\_b\&c & on & 4 & 60.75 $\pm$ " in body[5]
    assert r"\textbf{$+$10.25 $\pm$ " in body[5]


def test_a_file_gets_the_format_of_its_name(tmp_path: Path, capsys) -> None:
    pair_of_groups(tmp_path / "runs", OFF, ON)
    for name, begin in (("t.md", "| wsa |"), ("t.tex", "% \\use"), ("t.csv", "wsa,seeds,")):
        out = tmp_path / name
        assert shown(capsys, str(tmp_path / "runs"), "--out", str(out)) == ""
        assert out.read_text().startswith(begin)


def test_an_interrupted_run_with_checkpoints_is_told_how_to_go_on(tmp_path: Path, capsys) -> None:
    killed = run_folder(tmp_path / "killed")
    (killed / "result.json").unlink()
    (killed / "checkpoints" / "round-000002").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no run is left to show"):
        table([str(killed)], Console())
    assert capsys.readouterr().err == (
        f"fedwsa-table: skipped {killed}: the run is not finished; fedwsa resume={killed} goes on\n"
    )


def test_a_test_without_a_pair_says_why_there_is_none(tmp_path: Path) -> None:
    run_folder(tmp_path / "off", axes={"wsa": "off"})
    asked = [str(tmp_path), "--baseline", "wsa=off", "--test", "wilcoxon"]
    with pytest.raises(ConfigError) as refused:
        table(asked, Console())
    assert str(refused.value) == (
        "--test wilcoxon: no row can be compared with wsa=off: there is no other row"
    )
    run_folder(tmp_path / "on", axes={"wsa": "on"}, seed=1)
    with pytest.raises(ConfigError) as refused:
        table(asked, Console())
    assert str(refused.value) == (
        "--test wilcoxon: no row can be compared with wsa=off: wsa=on: not compared: no seed has "
        "finished in both"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere", "nowhere: there is no such folder"),
        ("{empty}", "{empty}: there is no run folder"),
        ("{runs} --metric speed", "--metric speed: must be one of accuracy, last5"),
        ("{runs} --metric rounds_to_target", "--metric rounds_to_target: needs --target, the"),
        ("{runs} --target 90", "--target: a share between 0 and 1; did you mean 0.9? (got 90)"),
        ("{runs} --target 0", "--target: a share between 0 and 1 (got 0)"),
        ("{runs} --target nan", "--target: a share between 0 and 1 (got nan)"),
        ("{runs} --baseline wsa", "--baseline wsa: must be AXIS=LABEL"),
        ("{runs} --baseline was=off", "--baseline was=off: there is no axis was; axes: wsa"),
        ("{runs} --baseline wsa=of", "--baseline wsa=of: wsa is one of off, on"),
        ("{runs} --test t", "--test t: needs --baseline AXIS=LABEL"),
        (
            "{runs} --baseline wsa=off --test wilcoxon",
            "--test wilcoxon: the Wilcoxon signed-rank test needs at least 8 seeds; wsa=on has 4",
        ),
        ("{one} --baseline wsa=off --test t", "--test t: the paired t-test needs at least 2 seeds"),
        ("{runs} --out t.doc", "--out t.doc: give --format, or a name that ends in .md, .tex"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, arguments: str, message: str) -> None:
    pair_of_groups(tmp_path / "runs", OFF, ON)
    pair_of_groups(tmp_path / "one", OFF[:1], ON[:1])
    (tmp_path / "empty").mkdir()
    names = {name: tmp_path / name for name in ("runs", "one", "empty")}
    with pytest.raises(ConfigError) as refused:
        table(arguments.format(**names).split(), Console())
    assert str(refused.value).startswith(message.format(**names))
    assert "\n" not in str(refused.value)


def test_five_hundred_runs_take_less_than_five_seconds_start_included(tmp_path: Path) -> None:
    cohort = " ".join(map(str, range(20)))
    for i in range(500):
        axes = {"strategy": f"s{i % 25}", "wsa": "off" if i % 2 else "on"}
        history = [0.5 + i / 2000] * 100
        run_folder(tmp_path / str(i), history, axes=axes, seed=i // 50, cohort=cohort)
    command = "import sys; from experiments.commands.table import main; main(); "
    heavy = "print({'torch', 'ray', 'flwr', 'pandas'} & set(sys.modules))"
    arguments = [str(tmp_path), "--baseline", "wsa=off", "--metric", "accuracy,last5"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", command + heavy, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.stdout.splitlines()[-1] == "set()"
    assert seconds < 5  # of the processor: the machine may have other work


def test_every_metric_is_explained_by_its_title() -> None:
    assert all(measure.title for measure in METRICS.values())


def test_a_study_s_baseline_may_be_yet_to_come(tmp_path: Path) -> None:
    pair_of_groups(tmp_path, OFF, ON)
    runs, baseline = collect([str(tmp_path)]).runs, {"wsa": "half"}
    with pytest.raises(ConfigError, match="wsa is one of off, on"):
        build(runs, Request(baseline=baseline))
    built = build(runs, Request(baseline=baseline, planned=True))
    assert [row.compared for row in built.rows] == [None, None]
    assert "there is no run of its baseline" in to_latex(built)
