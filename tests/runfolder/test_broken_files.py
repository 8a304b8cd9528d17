"""Two thousand broken inputs: each is refused in one line or read as what it says, never more.

Damage is drawn by hypothesis: bytes cut out, put in, or changed, anywhere in a file that was good.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.commands.preamble import composing
from fedwsa.command_line import in_one_line
from fedwsa.config.component import Component, ConfigError
from fedwsa.data.federated import open_federated
from fedwsa.data.loading import load
from fedwsa.data.sources import parquet
from fedwsa.models import build_model
from fedwsa.models.files import load_network, save_network
from fedwsa.models.inputs import ImageShape
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config
from fedwsa.scope.weight_scope import WeightScope
from fedwsa.wire import messages
from server.checkpoint import Checkpoint, Checkpoints
from server.sizes import SizedModels
from server.strategy import build_strategy
from tests.given.images import huggingface, png

pytestmark = pytest.mark.slow

MANY = 350
broken = settings(
    max_examples=MANY,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A change to some bytes: a cut, a piece more, other bits, another end."""
    kind = draw(st.sampled_from(["cut", "insert", "change", "truncate", "replace"]))
    share, length = draw(st.floats(0, 1)), draw(st.integers(1, 40))
    piece = draw(st.binary(min_size=1, max_size=40))

    def apply(good: bytes) -> bytes:
        at = int(share * len(good))
        if kind == "cut":
            return good[:at] + good[at + length :]
        if kind == "insert":
            return good[:at] + piece + good[at:]
        if kind == "change":
            return good[:at] + piece + good[at + len(piece) :]
        return good[:at] if kind == "truncate" else piece

    return apply


def or_refused(action: Callable[[], Any]) -> Any:
    """What it returns; None if it is refused, which must be one line."""
    refusal = ""
    try:
        return action()
    except ConfigError as error:
        refusal = str(error)
    assert refusal.strip()
    assert "\n" not in refusal
    return None


# Configurations

KEYS = """
rounds seed device clients clients.count clients.fraction clients.sizes clients.deadline local
local.lr local.lr_factors local.precision wsa wsa.strength wsa.layers partition partition.alpha
strategy strategy.args.fraction_train strategy._target_ model model.depth model._target_ dataset
evaluation.validation runtime runtime.workers tracker skew subset sizes.S.width init init.file
checkpoint.every nonsense experiment hydra.run.dir
""".split()  # noqa: SIM905
VALUES = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["null", "true", "[]", "{}", "[1,2]", "{a: 1}", "off", "on", "mlp", "nan"]),
    st.sampled_from(["${seed}", "${nothing}", "???", "os.system", "builtins.eval", "torch.load"]),
    st.text(max_size=12),
)
OVERRIDES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(KEYS), VALUES).map("=".join),
        st.tuples(st.sampled_from(["+", "++", "~"]), st.sampled_from(KEYS)).map("".join),
        st.text(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=3,
)


@broken
@given(OVERRIDES)
def test_a_configuration(overrides: list[str]) -> None:
    errors = io.StringIO()
    code = 0
    try:
        with redirect_stderr(errors), in_one_line("fedwsa"), composing("fedwsa", overrides):
            compose(overrides)
    except SystemExit as end:
        code = end.code
    lines = errors.getvalue().splitlines()
    assert (code, len(lines)) in [(0, 0), (1, 1)], lines


# Partition files


@pytest.fixture(scope="module")
def partition(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, Config]:
    folder = tmp_path_factory.mktemp("partition")
    clients = ["clients.count=3", f"cache_dir={folder}"]
    made = open_federated(compose(clients).data_spec)
    file = folder / "given.json"
    config = compose(["partition=from_file", f"partition.path={file}", *clients])
    return file, json.dumps(made.partition.as_dict()).encode(), config


@broken
@given(damage())
def test_a_partition_file(
    partition: tuple[Path, bytes, Config], hurt: Callable[[bytes], bytes]
) -> None:
    file, good, config = partition
    file.write_bytes(changed := hurt(good))
    found = or_refused(lambda: open_federated(config.data_spec))
    assert file.read_bytes() == changed
    if found is not None:
        taken = np.concatenate([np.asarray(s) for s in found.partition.shares])
        assert len(set(taken.tolist())) == len(taken)


# Checkpoints


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(folder, FedAvg())
    for number in (1, 2):
        arrays = messages.to_arrays({"w": torch.full((40,), float(number))})
        state = RecordDict({"own": ArrayRecord(), "note": ConfigRecord({"n": number})})
        checkpoints.write(Checkpoint(number, arrays, checkpoints.memory(), {0: state}))
    return folder


@broken
@given(damage(), st.sampled_from(["state.json", "arrays.safetensors"]))
def test_a_checkpoint(run: Path, hurt: Callable[[bytes], bytes], name: str) -> None:
    """The damaged one gives way to the one before, unless what changed is nothing."""
    file = run / "checkpoints" / "round-000002" / name
    good = file.read_bytes()
    file.write_bytes(hurt(good))
    try:
        found = Checkpoints(run, FedAvg()).newest()
    finally:
        file.write_bytes(good)
    [weights] = messages.to_tensors(found.arrays).values()
    assert found.round in (1, 2)
    assert weights.tolist() == [float(found.round)] * 40


# Parquet files


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    return huggingface(
        folder / "data", [png(seed=i) for i in range(12)], [i % 3 for i in range(12)]
    )


@broken
@given(damage())
def test_a_parquet_file(images: Path, hurt: Callable[[bytes], bytes]) -> None:
    file = images / "train.parquet"
    good = file.read_bytes()
    file.write_bytes(changed := hurt(good))
    try:
        found = or_refused(lambda: load(parquet(path=str(images)), images.parent / "cache"))
        assert file.read_bytes() == changed
    finally:
        file.write_bytes(good)
    if found is not None:
        assert len(found.train.inputs) == len(found.train.labels)
        assert int(found.train.labels.min()) >= 0
        assert int(found.train.labels.max()) < found.classes


# Models, learngenes, scopes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = compose(["model.width=0.05", f"cache_dir={folder}"])
    data = open_federated(config.data_spec).whole
    network = build_model(config.model, data.shape, data.classes, seed=0)
    save_network(folder / "model.safetensors", network.state_dict(), config.model, data)
    return folder / "model.safetensors"


@broken
@given(damage())
def test_a_model_file(model: Path, hurt: Callable[[bytes], bytes]) -> None:
    file = model.with_name("hurt.safetensors")
    file.write_bytes(changed := hurt(model.read_bytes()))
    found = or_refused(lambda: load_network(file))
    assert file.read_bytes() == changed
    if found is not None:
        assert isinstance(found.model, Component)


@pytest.fixture(scope="module")
def scope(model: Path) -> tuple[Path, Config, SizedModels]:
    file = model.with_name("scope.safetensors")
    config = compose(["wsa=on", "wsa.target=fixed", f"wsa.scope={file}", "model.width=0.05"])
    return file, config, SizedModels.of(config, ImageShape(1, 8, 8), 10)


@broken
@given(damage())
def test_a_scope_file(
    model: Path, scope: tuple[Path, Config, SizedModels], hurt: Callable[[bytes], bytes]
) -> None:
    file, config, sizes = scope
    file.write_bytes(changed := hurt(model.read_bytes()))
    found = or_refused(lambda: build_strategy(config, sizes))
    assert file.read_bytes() == changed
    if found is not None:
        target = found.target
        assert isinstance(target, WeightScope)
        assert bool(torch.isfinite(target.mean).all())
        assert bool((target.variance >= 0).all())
