"""Tables of runs with clients of several sizes, and of weight scopes."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.reports.comparison import SweptRun, compare
from fedwsa.config.component import ConfigError
from tests.given.run_folders import run_folder, write
from tests.given.tables import as_csv, shown


def sized_folder(folder: Path, wsa: str, seed: int, shift: float) -> None:
    """A run of two sizes over two rounds: M has 20 % and 30 % and S ten less, but for the shift."""
    run_folder(folder, [0.2, 0.3], axes={"wsa": wsa}, seed=seed)
    rows = [
        f"{number},{size},{0.1 * (1 + number) + own + shift},1.0,2"
        for number in (1, 2)
        for size, own in (("S", -0.1), ("M", 0.0))
    ]
    (folder / "sizes.csv").write_text("\n".join(["round,size,accuracy,loss,clients", *rows, ""]))
    known = {"parameters": {"S": 10, "M": 2000}, "bytes": {"S": 40, "M": 8000}}
    write(folder / "sizes.json", {"models": {}, "clients": ["S", "M", "S"], **known})
    head = "round,layer,fused_mean,fused_std,averaged_mean,averaged_std,client_kl"
    layers = ["1,a,0,9,0,9,9", "2,a,0,2.0,0,1.0,0.5", "2,b,0,4.0,0,5.0,0.25"]
    (folder / "scopes.csv").write_text("\n".join([head, *layers, ""]))


def test_sizes_and_scopes_of_runs_are_read(tmp_path: Path, capsys) -> None:
    for seed in range(3):
        sized_folder(tmp_path / f"off{seed}", "off", seed, 0.0)
        sized_folder(tmp_path / f"on{seed}", "on", seed, 0.05)
    names = "sizes,size_M,size_S,drift,client_kl"
    off, on = as_csv(capsys, str(tmp_path), "--metric", names, "--baseline", "wsa=off")
    # The mean of two rounds: M 25 %, S 15 %; over the sizes 20 %.
    assert [float(off[k]) for k in ("size_M", "size_S", "sizes")] == pytest.approx(
        [0.25, 0.15, 0.2]
    )
    assert float(on["difference"]) == pytest.approx(0.05)
    # In the last round σ is half, and 5/4, of the fused one.
    assert float(off["drift"]) == pytest.approx((0.5 + 0.25) / 2)
    assert float(off["client_kl"]) == pytest.approx(0.375)
    with pytest.raises(ConfigError, match="or size_NAME, of a size"):
        shown(capsys, str(tmp_path), "--metric", "size_")


def test_a_sweep_over_sizes_shows_each_of_them(tmp_path: Path, capsys) -> None:
    runs = []
    for k, wsa in enumerate(("off", "on")):
        sized_folder(tmp_path / str(k), wsa, 0, 0.05 * k)
        runs.append(SweptRun([f"wsa={wsa}"], tmp_path / str(k)))
    compare(runs, tmp_path)
    said = capsys.readouterr().out
    assert "Models of each size" in said
    # The largest first.
    assert "size M: 2,000 parameters, 8 kB each way and round; 1 clients\nsize S: 10" in said
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    assert "size_M,size_M_half" in (tmp_path / "comparison.csv").read_text()
