"""When devices are on, by simulated time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.commands.simulate import simulate
from fedwsa.config.component import ConfigError
from fedwsa.fleet.traces import Diurnal, Recorded, open_trace
from fedwsa.schema.compose import compose

TABLE = "device,on,off\na,0,10\na,20,30\nb,5,25\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    place = tmp_path / "trace.csv"
    place.write_text(TABLE)
    return place


def test_a_recorded_trace_is_repeated_and_shared_by_clients(file: Path) -> None:
    trace = Recorded.read(file, 3)  # the third client has the first device
    assert trace.stays(0).tolist() == [10, 0, 10]
    assert trace.stays(7).tolist() == [3, 18, 3]
    assert trace.stays(12).tolist() == [0, 13, 0]
    assert trace.stays(37).tolist() == [3, 18, 3]  # thirty seconds later
    one = Recorded.read(file, 1)
    assert one.comes(12) == 20
    assert one.comes(25) == 25
    assert one.comes(40) == 50


def test_a_diurnal_fleet_is_on_for_its_share_of_every_day() -> None:
    trace = Diurnal.drawn(3, 500, day=24.0, share=0.25)
    clocks = np.linspace(0, 24, 241)[:-1]
    on = np.array([trace.stays(clock) > 0 for clock in clocks])
    assert on.mean(0) == pytest.approx(0.25, abs=0.01)  # each device, over a day
    assert on.mean(1) == pytest.approx(0.25, abs=0.1)  # and the fleet, at each time
    assert trace.stays(5.0) == pytest.approx(trace.stays(29.0))
    lonely = Diurnal.drawn(3, 1, day=24.0, share=0.25)
    begins = float(lonely.begins[0])
    assert lonely.comes(begins + 7) == pytest.approx(begins + 24)
    assert lonely.stays(begins + 2)[0] == pytest.approx(4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("device,on\na,0\n", "must have the columns device,on,off"),
        ("device,on,off\n", "must have the columns device,on,off"),
        ("device,on,off\na,0,5\nb,7,x\n", "row 3: off is no number"),
        ("device,on,off\na,5,5\n", "row 2: off must come after on"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_by_its_row(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "trace.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_trace({"file": str(tmp_path / "trace.csv")}, 0, 3)
    words = [f"clients.availability={{file: {tmp_path}/trace.csv}}", f"cache_dir={tmp_path}/c"]
    with pytest.raises(ConfigError, match=rf"clients\.availability: .*trace\.csv: {message}"):
        simulate(compose(words), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    words = [f"clients.availability={{file: {tmp_path}/none.csv}}", f"cache_dir={tmp_path}/c"]
    with pytest.raises(ConfigError, match=r"availability: .*none\.csv: there is no such file$"):
        simulate(compose(words), tmp_path / "run")


WISHES = ["{day: 10}", "{day: 10, share: 2}", "{file: 3}", "{day: a, share: 1}"]


@pytest.mark.parametrize("wish", WISHES)
def test_a_wish_that_is_none_is_refused(wish: str) -> None:
    with pytest.raises(ConfigError, match=r"clients\.availability: .*must be"):
        compose([f"clients.availability={wish}"])


def test_a_run_waits_for_who_comes_and_loses_who_goes(tmp_path: Path) -> None:
    """Device a is on for the first second, and does not get through its second training."""
    (tmp_path / "trace.csv").write_text("device,on,off\na,0,1\nb,100,200\nc,0,0.001\n")
    words = ["clients.count=3", "rounds=3", "local.epochs=1", "model.width=0.1", "partition=iid"]
    more = [f"clients.availability={{file: {tmp_path}/trace.csv}}", f"cache_dir={tmp_path}/c"]
    # 383 samples of 8720 operations: 0.6 s.
    simulate(compose([*words, *more, "clients.flops_per_second=5.5e6"]), tmp_path / "run")
    table = pd.read_csv(tmp_path / "run" / "history.csv", dtype={"cohort": str, "dropped": str})
    assert table["cohort"].tolist() == ["0 2", "0", "1"]
    assert table["dropped"].tolist()[:2] == ["2", "0"]
    assert pd.isna(table["dropped"][2])
    clock = table["simulated_seconds"].cumsum().tolist()
    assert clock[:2] == pytest.approx([0.62, 1.24], abs=0.05)
    assert clock[2] == pytest.approx(100.62, abs=0.05)  # b has as many samples


def test_a_paced_run_goes_by_the_trace_too(tmp_path: Path) -> None:
    words = ["clients.count=6", "rounds=8", "local.epochs=1", "model.width=0.1", "pace=fedbuff"]
    more = ["clients.availability={day: 2, share: 0.5}", "pace.buffer=2", f"cache_dir={tmp_path}/c"]
    simulate(compose([*words, *more, "clients.flops_per_second=5.5e6"]), tmp_path / "run")
    table = pd.read_csv(tmp_path / "run" / "history.csv", dtype={"cohort": str, "dropped": str})
    assert table["dropped"].notna().any()
    assert table["cohort"].notna().all()
