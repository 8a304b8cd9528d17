"""Very many clients: what is written of them, and that nothing is made for each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from experiments.bench.memory import fleet
from experiments.commands.simulate import simulate
from fedwsa.config.component import ConfigError
from fedwsa.data.federated import open_federated
from fedwsa.data.partition_files import MOST_AS_TEXT
from fedwsa.data.shares import Shares
from fedwsa.fleet import systems
from fedwsa.schema.compose import compose

COUNT = MOST_AS_TEXT + 2000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with more clients than are written down one by one."""
    folder = tmp_path_factory.mktemp("many")
    words = [*fleet(COUNT, 20, 2 * COUNT), "rounds=1", f"cache_dir={folder}/cache", "skew=noise"]
    simulate(compose([*words, "local=differing"]), folder / "run", pictures=True)
    return folder / "run"


def test_who_has_what_lies_in_a_file_beside(run: Path) -> None:
    written = json.loads((run / "partition.json").read_text())
    assert written["clients"] == COUNT
    assert written["arrays"] == "partition.safetensors"
    assert not {"indices", "label_counts"} & written.keys()
    assert (run / "partition.json").stat().st_size < 1000
    assert (run / "partition.png").stat().st_size > 5000
    assert not (run / "skew.csv").exists()  # each is drawn by the seed when it trains


def again(run: Path, *more: str) -> Shares:
    here = [f"cache_dir={run.parent}/cache", *fleet(COUNT, 20, 2 * COUNT)]
    given = ["partition=from_file", f"partition.path={run}/partition.json"]
    config = compose([*here, *given, *more])
    return open_federated(config.data_spec).partition.shares


def test_it_can_be_taken_again(run: Path) -> None:
    assert again(run).hash == json.loads((run / "partition.json").read_text())["hash"]


def test_a_damaged_file_beside_is_one_line(run: Path, tmp_path: Path) -> None:
    for name in ("partition.json", "partition.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / "partition.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match=r"partition\.safetensors is damaged"):
        again(tmp_path)
    (tmp_path / "partition.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"cannot read .*: No such file"):
        again(tmp_path)


def test_a_file_of_another_partition_is_refused_also_where_the_first_is_cached(
    run: Path, tmp_path: Path
) -> None:
    (tmp_path / "partition.json").write_bytes((run / "partition.json").read_bytes())
    arrays = load_file(run / "partition.safetensors")
    arrays["indices"][[0, -1]] = arrays["indices"][[-1, 0]]
    save_file(arrays, tmp_path / "partition.safetensors")
    with pytest.raises(ConfigError, match=r"is not the file that partition\.json tells of"):
        again(tmp_path)


def test_where_nobody_has_a_hold_out_nobody_is_asked(run: Path) -> None:
    assert not pd.read_csv(run / "history.csv")["client_accuracy_mean"].notna().any()
    assert "no client has the 5 samples of a hold-out" in (run / "run.log").read_text()


def test_a_million_shares_are_two_arrays() -> None:
    order = np.random.default_rng(0).permutation(3_000_000)
    shares = Shares(order, np.full(1_000_000, 3))
    assert np.array_equal(shares[-1], order[-3:])
    assert np.shares_memory(shares[5], order)
    arranged = shares.sorted()
    assert all((np.diff(arranged[k]) > 0).all() for k in (0, 7, 999_999))
    assert set(arranged[7].tolist()) == set(order[21:24].tolist())


def test_shares_have_the_hash_of_the_words_one_after_the_other() -> None:
    import hashlib

    arrays = [np.array([4, 9]), np.array([], dtype=np.int64), np.array([0, 1, 7])]
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(array.astype("<i8").tobytes())
    assert Shares.of(arrays).hash == digest.hexdigest()


def test_who_is_there_of_a_million_is_drawn_at_once() -> None:
    there = systems.available(0, 3, 1_000_000, 0.1)
    assert abs(len(there) - 100_000) < 5 * 300  # five standard deviations
    few = systems.available(0, 3, 1000, 0.1)
    assert few == [client for client in there if client < 1000]
