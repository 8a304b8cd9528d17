"""Partitions and hold-outs, through the real partitioners."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedwsa.config.component import Component, ConfigError
from fedwsa.data import by_size
from fedwsa.data.by_size import proportional
from fedwsa.data.federated import DataSpec, FederatedData, open_federated
from fedwsa.data.partition import describe, make_shares
from fedwsa.schema.compose import compose

LABELS = np.random.default_rng(0).integers(0, 10, 2000)
PARTITIONS = {
    "iid": {},
    "dirichlet": {"alpha": 0.5, "min_size": 5},
    "inner_dirichlet": {"alpha": 0.1},
    "pathological": {"classes_per_client": 2},
    "shards": {"shards_per_client": 2},
    "linear": {},
    "exponential": {"ratio": 20.0},
}


def part(name: str, **arguments: object) -> Component:
    room = "by_size" if hasattr(by_size, name) else "partitioners"
    return Component.of(f"fedwsa.data.{room}.{name}", **arguments)


@pytest.mark.parametrize("name", PARTITIONS)
def test_no_sample_is_lost_or_doubled_and_a_seed_repeats(name: str) -> None:
    component = part(name, **PARTITIONS[name])
    shares, again, other = (make_shares(component, LABELS, 10, 20, s) for s in (0, 0, 1))
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(2000))
    hashes = [describe(component, s, LABELS, 10, 0).hash for s in (shares, again, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_partitions_have_the_property_they_are_named_for() -> None:
    def counts(name: str, **arguments: object) -> np.ndarray:
        component = part(name, **arguments)
        shares = make_shares(component, LABELS, 10, 20, 0)
        return describe(component, shares, LABELS, 10, 0).label_counts

    assert set(counts("iid").sum(1)) == {100}
    assert set((counts("pathological", classes_per_client=3) > 0).sum(1)) == {3}
    assert (counts("shards", shards_per_client=2) > 0).sum(1).max() <= 4
    assert set(counts("inner_dirichlet", alpha=0.1).sum(1)) == {100}
    # 1 + 2 + … + 20 = 210 parts of 2000 samples: 9.52 for the first, 190.5 for the last.
    linear = counts("linear").sum(1)
    assert (linear[0], linear[-1]) == (10, 190)
    exponential = counts("exponential", ratio=20.0).sum(1)
    assert exponential[-1] / exponential[0] == pytest.approx(20, rel=0.05)
    # A smaller alpha leaves fewer classes with most of a client's samples.
    largest = [
        (c.max(1) / c.sum(1)).mean()
        for c in (counts("dirichlet", alpha=a, min_size=1) for a in (0.1, 1.0, 100.0))
    ]
    assert largest[0] > largest[1] > largest[2]


def test_size_partitions_do_not_follow_the_order_of_the_data() -> None:
    ordered = np.sort(LABELS)
    component = part("linear")
    counts = describe(component, make_shares(component, ordered, 10, 5, 0), ordered, 10, 0)
    assert (counts.label_counts > 0).all()


def test_proportional_sizes_add_up() -> None:
    assert proportional(10, [1, 1, 1]) == [4, 3, 3]
    assert sum(proportional(1437, list(range(1, 38)))) == 1437


@pytest.mark.parametrize(
    ("component", "clients", "message"),
    [
        (part("iid"), 3000, r"clients\.count: 3000 clients, but there are only 2000 samples"),
        (part("dirichlet", alpha=-1.0, min_size=1), 5, r"partition\.alpha: .*greater than 0"),
        (part("dirichlet", alpha=0.01, min_size=50), 30, "partition=inner_dirichlet, whose sizes"),
        (
            part("pathological", classes_per_client=11),
            5,
            r"classes_per_client: 11 classes per client, but the data has only 10",
        ),
        (part("pathological", classes_per_client=2), 3, "no client has any sample of class"),
        (part("shards", shards_per_client=500), 10, "need as many samples"),
        (part("exponential", ratio=1e6), 100, "of 100 clients would have no sample"),
        (part("dirichlet", alpha=float("inf"), min_size=1), 5, r"finite number \(got inf\)"),
        (part("iid", alpha=1.0), 5, "iid has no such argument; it takes nothing"),
        (part("dirichlet", alpha=1.0), 5, r"partition\.min_size: dirichlet needs it"),
        (part("dirichlet", alpha="x", min_size=1), 5, r"partition\.alpha: .*valid number"),
        (part("sorted"), 5, "fedwsa.data.partitioners has no sorted"),
    ],
)
def test_partitions_that_cannot_be_are_refused_in_one_line(component, clients, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_shares(component, LABELS, 10, clients, 0)
    assert "\n" not in str(caught.value)


def digits(folder: Path, partition: Component, clients: int, seed: int) -> FederatedData:
    source = Component.of("fedwsa.data.sources.digits")
    spec = DataSpec(
        source=source, partition=partition, clients=clients, seed=seed, cache_dir=str(folder)
    )
    return open_federated(spec)


def test_a_subset_is_the_same_in_all_runs_and_not_more_than_there_is(tmp_path: Path) -> None:
    def run(*overrides: str) -> FederatedData:
        return open_federated(compose([f"cache_dir={tmp_path}", *overrides]).data_spec)

    whole = run("seed=1").whole
    small = [run(f"seed={seed}", "subset.train=300", "subset.test=50") for seed in (1, 2)]
    for data in small:
        assert (len(data.whole.train), len(data.whole.test)) == (300, 50)
        assert torch.equal(data.whole.train.inputs, small[0].whole.train.inputs)
        assert sum(map(len, data.partition.shares)) == 300
    assert whole.train.inputs[:300].ne(small[0].whole.train.inputs).any()
    assert small[0].whole.mean == whole.mean
    with pytest.raises(ConfigError, match="subset: 9999 examples, but there are only 1437"):
        run("subset.train=9999")


@pytest.mark.parametrize("made", ["5", "None", "[['a']]"])
def test_what_is_no_list_of_indices_is_refused(made: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "no_shares.py").write_text(f"def cut(labels, clients, seed):\n    return {made}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("no_shares", None)
    own = Component.of("no_shares.cut")
    with pytest.raises(ConfigError, match="partition=cut: must return a list of arrays of indi"):
        make_shares(own, LABELS, 10, 1, 0)


def test_partitions_are_cached_and_described(tmp_path: Path) -> None:
    first = digits(tmp_path, part("iid"), 7, 3)
    digits(tmp_path, part("iid"), 7, 4)  # another one, so that 3 is read from disk
    second = digits(tmp_path, part("iid"), 7, 3)
    assert first is not second
    assert first.partition.hash == second.partition.hash
    described = json.loads(json.dumps(second.partition.as_dict()))
    assert described["arguments"] == {"clients": 7, "seed": 3}
    assert described["samples"] == sum(map(len, described["indices"])) == 1437
    assert np.sum(described["label_counts"]) == 1437


def test_a_changed_partition_function_is_run_again(tmp_path: Path, monkeypatch) -> None:
    code = "import numpy as np\ndef cut(labels, clients, seed):\n    return np.array_split({}, 2)\n"
    module = tmp_path / "own_partition.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    own = Component.of("own_partition.cut")
    hashes = []
    for order in ("np.arange(1437)", "np.arange(1437)[::-1]"):
        module.write_text(code.format(order))
        sys.modules.pop("own_partition", None)
        importlib.invalidate_caches()
        hashes.append(digits(tmp_path / "c", own, 2, 0).partition.hash)
    assert hashes[0] != hashes[1]


def test_a_fifth_of_a_client_is_held_out_and_nothing_of_a_tiny_one(tmp_path: Path) -> None:
    data = digits(tmp_path, part("iid"), 14, 0)
    share = len(data.partition.shares[0])  # 1437 / 14 = 102.6
    train, held = data.split(0)
    assert len(held) == round(share / 5)
    assert sorted(train.tolist() + held.tolist()) == data.partition.shares[0].tolist()
    assert torch.equal(data.split(0)[1], held)
    tiny = digits(tmp_path, part("iid"), 400, 0)
    train, held = tiny.split(0)
    assert len(train) in (3, 4)
    assert len(held) == 0


def test_public_images_are_no_client_s(tmp_path: Path) -> None:
    def opened(public: float) -> FederatedData:
        overrides = ["clients.count=5", "partition=iid", f"cache_dir={tmp_path}"]
        return open_federated(compose([*overrides, f"init.public={public}"]).data_spec)

    some, none = opened(0.25), opened(0.0)
    held = np.concatenate(some.partition.shares)
    assert len(some.public) == round(0.25 * 1437)
    assert sorted([*held, *some.public.tolist()]) == list(range(1437))
    assert sorted(np.concatenate(none.partition.shares)) == list(range(1437))
    labels = some.whole.train.labels.numpy()
    assert some.partition.label_counts.sum(0).tolist() == np.bincount(labels[held]).tolist()
