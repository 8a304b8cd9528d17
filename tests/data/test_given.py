"""Partitions by natural ids and from a file, and a number of clients that they know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedwsa.config.component import Component, ConfigError
from fedwsa.data.federated import FederatedData, open_federated
from fedwsa.data.partition import Facts, Shares, make_shares
from fedwsa.data.sources import parquet
from fedwsa.schema.compose import compose, from_run_config
from fedwsa.schema.config import Config
from tests.given.images import png

# Ids 0 … 4 with 6, 5, 4, 3 and 2 samples.
IDS = np.repeat([3, 0, 4, 1, 2], [3, 6, 2, 5, 4])
LABELS = np.arange(20) % 3
FACTS: Facts = {"ids": lambda: IDS}


def given(name: str, **arguments: object) -> Component:
    return Component.of(f"fedwsa.data.given.{name}", **arguments)


def shares(component: Component, clients: int | None = None, seed: int = 0) -> Shares:
    return make_shares(component, LABELS, 3, clients, seed, FACTS)


def ids_of(made: Shares) -> list[list[int]]:
    return [sorted(set(IDS[share].tolist())) for share in made]


def test_a_client_for_each_natural_id_that_has_enough_samples() -> None:
    made = shares(given("natural", min_samples=1))
    assert ids_of(made) == [[0], [1], [2], [3], [4]]
    assert [len(s) for s in made] == [6, 5, 4, 3, 2]
    assert ids_of(shares(given("natural", min_samples=4))) == [[0], [1], [2]]


def test_a_number_of_clients_draws_as_many_ids_and_all_of_them_are_all() -> None:
    component = given("natural", min_samples=1)
    drawn = [ids_of(shares(component, 2, seed)) for seed in range(20)]
    assert all(len(ids) == 2 and ids == sorted(ids) for ids in drawn)
    assert {i for ids in drawn for [i] in ids} == {0, 1, 2, 3, 4}
    assert drawn[3] == ids_of(shares(component, 2, 3))
    everyone, five = shares(component), shares(component, 5)
    assert all(np.array_equal(a, b) for a, b in zip(everyone, five, strict=True))


@pytest.mark.parametrize(
    ("size", "remainder", "sizes"),
    [
        (2, "smaller", [2, 2, 1]),
        (2, "bigger", [3, 2]),
        (2, "drop", [2, 2]),
        (5, "strict", [5]),
        (9, "smaller", [5]),
    ],
)
def test_natural_ids_are_grouped_and_none_is_in_two_groups(size, remainder, sizes) -> None:
    made = shares(given("grouped_natural", group_size=size, remainder=remainder))
    groups = ids_of(made)
    assert [len(g) for g in groups] == sizes
    assert len({i for g in groups for i in g}) == sum(sizes)
    # Whole ids: each client has all samples of its ids.
    assert [len(s) for s in made] == [int(np.isin(IDS, g).sum()) for g in groups]


@pytest.mark.parametrize(
    ("component", "clients", "facts", "message"),
    [
        (
            given("natural", min_samples=1),
            6,
            FACTS,
            r"clients\.count: 6 clients, but there are 5 natural ids with at least 1 samples",
        ),
        (
            given("natural", min_samples=7),
            None,
            FACTS,
            r"partition\.min_samples: no natural id has 7 samples; the largest has 6",
        ),
        (
            given("natural", min_samples=1),
            None,
            {"ids": lambda: None},
            "partition=natural: needs natural ids, which this data set has not; dataset=parquet",
        ),
        (
            given("grouped_natural", group_size=2, remainder="strict"),
            None,
            FACTS,
            r"partition\.group_size: 5 natural ids cannot be put into groups of 2",
        ),
        (
            given("grouped_natural", group_size=6, remainder="drop"),
            None,
            FACTS,
            r"partition\.group_size: there are only 5 natural ids",
        ),
        (
            given("grouped_natural", group_size=2, remainder="none"),
            None,
            FACTS,
            r"partition\.remainder: input should be 'smaller', 'bigger', 'drop' or 'strict'",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(component, clients, facts, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_shares(component, LABELS, 3, clients, 0, facts)
    assert "\n" not in str(caught.value)


def write_images(folder: Path, ids: list) -> None:
    folder.mkdir()
    for part in ("train", "test"):
        columns = {
            "image": [png(seed=i) for i in range(len(ids))],
            "label": [i % 2 for i in range(len(ids))],
        }
        if part == "train":  # nobody needs those of the test images
            columns["writer"] = ids
        pq.write_table(pa.table(columns), folder / f"{part}.parquet")


NAMED = ["dataset=parquet", "dataset.id_column=writer", "partition=natural"]


def natural_run(tmp_path: Path, *overrides: str) -> Config:
    places = [f"dataset.path={tmp_path / 'd'}", f"cache_dir={tmp_path / 'c'}"]
    return compose([*NAMED, *places, "partition.min_samples=2", *overrides])


@pytest.mark.parametrize("ids", [["eve", "bob", "eve", "bob", "ann", "eve"], [9, 4, 9, 4, 1, 9]])
def test_ids_of_a_parquet_column_are_clients(tmp_path: Path, ids: list) -> None:
    write_images(tmp_path / "d", ids)
    for _ in range(2):  # decoded, then from the cache
        data = open_federated(natural_run(tmp_path, "clients.count=2").data_spec)
        assert data.whole.train.ids is not None
        assert data.whole.train.ids.tolist() == [2, 1, 2, 1, 0, 2]
        assert [s.tolist() for s in data.partition.shares] == [[1, 3], [0, 2, 5]]
    assert data.whole.test.ids is None


@pytest.mark.parametrize(
    ("ids", "column", "message"),
    [
        (["a", None], "writer", "column writer: some ids are missing"),
        ([0.5, 1.5], "writer", "writer must hold integers or strings; it is double"),
        (["a", "b"], "author", "has no author; it has image"),
    ],
)
def test_id_columns_that_name_nobody_are_refused(tmp_path, ids, column, message) -> None:
    write_images(tmp_path / "d", ids)
    with pytest.raises(ConfigError, match=rf"dataset\.id_column: .*{message}"):
        parquet(path=str(tmp_path / "d"), id_column=column).decode()


def test_null_clients_are_as_many_as_the_partition_has(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["eve", "bob", "eve", "bob", "ann", "eve"])
    config = natural_run(tmp_path, "clients.count=null", "clients.sizes=[S,L]")
    assert config.clients.count == 2
    words = [*NAMED, f"dataset.path={tmp_path / 'd'}", f"cache_dir={tmp_path / 'c'}"]
    run = {"overrides": " ".join([*words, "partition.min_samples=1", "clients.count=null"])}
    assert from_run_config(run).clients.count == 3
    with pytest.raises(ConfigError, match=r"clients\.sizes: "):  # a size each, for two clients
        natural_run(tmp_path, "clients.count=null", "clients.sizes=[S,M,L]")
    with pytest.raises(ConfigError, match=r"^rounds: input should be greater than 0"):
        natural_run(tmp_path, "clients.count=null", "rounds=0")


def test_a_drawn_partition_needs_a_number_of_clients(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"clients\.count: partition=dirichlet needs a number"):
        compose(["clients.count=null", f"cache_dir={tmp_path}"])


def digits(tmp_path: Path, *overrides: str) -> FederatedData:
    return open_federated(compose([f"cache_dir={tmp_path / 'c'}", *overrides]).data_spec)


def saved(tmp_path: Path, *overrides: str) -> tuple[Path, FederatedData]:
    data = digits(tmp_path, *overrides)
    file = tmp_path / "partition.json"
    file.write_text(json.dumps(data.partition.as_dict()))
    return file, data


@pytest.mark.parametrize("count", [7, None])
def test_a_saved_partition_is_the_same_to_the_sample(tmp_path: Path, count: int | None) -> None:
    file, data = saved(tmp_path, "clients.count=7", "seed=3", "init.public=0.25")
    number = "null" if count is None else count
    again = ["partition=from_file", f"partition.path={file}", f"clients.count={number}"]
    # The file says who has what: another seed changes nothing, as long as nothing is public.
    for others in (["seed=3", "init.public=0.25"], ["seed=4"]):
        assert digits(tmp_path, *again, *others).partition.hash == data.partition.hash
    with pytest.raises(ConfigError, match="gives clients samples that are public here"):
        digits(tmp_path, *again, "seed=4", "init.public=0.25")


def test_a_changed_file_is_another_partition(tmp_path: Path) -> None:
    file, data = saved(tmp_path, "clients.count=7")
    again = ["partition=from_file", f"partition.path={file}", "clients.count=7"]
    assert digits(tmp_path, *again).partition.hash == data.partition.hash
    values = json.loads(file.read_text())
    values["indices"].reverse()
    file.write_text(json.dumps(values))
    reversed_shares = digits(tmp_path, *again).partition.shares
    assert np.array_equal(reversed_shares[0], data.partition.shares[-1])


def test_a_file_made_for_other_data_or_of_no_use_is_refused_in_one_line(tmp_path: Path) -> None:
    file, _ = saved(tmp_path, "clients.count=7")
    good = json.loads(file.read_text())

    def refusal(text: str | None, count: object = "null") -> str:
        if text is None:
            file.unlink()
        else:
            file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            digits(
                tmp_path,
                "partition=from_file",
                f"partition.path={file}",
                f"clients.count={count}",
            )
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert f"8 clients, but {file} has 7" in refusal(json.dumps(good), 8)
    other = {**good, "data": {"samples": 60000, "labels": "0123456789abcdef"}}
    message = refusal(json.dumps(other))
    assert "was made for other data: 60000 training samples, labels 0123456789ab; these" in message
    assert "is no partition.json: Invalid JSON" in refusal("no json")
    assert "is no partition.json: data: Field required" in refusal('{"indices": [[1]]}')
    assert "indices.0.1: Input should be a valid integer" in refusal(
        json.dumps({**good, "indices": [[1, 2.5]]})
    )
    assert "or that there are not" in refusal(json.dumps({**good, "indices": [[0, 1437]]}))
    assert "some samples are at two clients" in refusal(json.dumps({**good, "indices": [[1], [1]]}))
    assert "partition.path: cannot read" in refusal(None)
    with pytest.raises(ConfigError, match=r"partition\.path: must be given"):
        compose(["partition=from_file"])
