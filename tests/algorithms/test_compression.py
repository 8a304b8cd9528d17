"""Compressed updates: what each rule is, and that what is left out comes later."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from experiments.commands.simulate import simulate
from fedwsa.algorithms.compression import rules
from fedwsa.algorithms.compression.client import Compression
from fedwsa.algorithms.objective import LocalRun, TrainedOn
from fedwsa.config.component import ConfigError
from fedwsa.schema.compose import compose

SMALL = ["clients.count=4", "local.epochs=1", "model.width=0.2", "rounds=4"]
FOUND = torch.tensor([[3.0, -1.0, 0.0], [0.5, -4.0, 2.0]])


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_top_k_keeps_the_largest_with_their_places() -> None:
    sent = rules.top_k(FOUND, random(), share=1 / 3)
    assert sent.tensor.tolist() == [[3.0, 0.0, 0.0], [0.0, -4.0, 0.0]]
    assert sent.bits == 2 * (32 + 3)
    assert torch.equal(rules.top_k(FOUND, random(), share=1.0).tensor, FOUND)
    drawn = torch.randn(1000, generator=random())
    left = (drawn - rules.top_k(drawn, random(), share=0.2).tensor).square().sum()
    assert left <= (1 - 0.2) * drawn.square().sum()  # the paper's contraction


@pytest.mark.parametrize(
    "rule",
    [partial(rules.random_k, share=0.5, unbiased=True), partial(rules.qsgd, levels=2, bucket=4)],
)
def test_the_mean_over_many_draws_is_the_tensor(rule: Callable[..., rules.Sent]) -> None:
    draws = torch.stack([rule(FOUND, random(seed)).tensor for seed in range(4000)])
    error = draws.std(0) / 4000**0.5
    assert ((draws.mean(0) - FOUND).abs() <= 4.5 * error + 1e-6).all()


def test_qsgd_with_many_levels_is_the_tensor_and_of_nothing_nothing() -> None:
    sent = rules.qsgd(FOUND, random(), levels=2**16, bucket=6)
    torch.testing.assert_close(sent.tensor, FOUND, atol=2e-4, rtol=0)
    assert rules.qsgd(FOUND, random(), levels=4, bucket=4).bits == 2 * 32 + 6 * (1 + 3)
    assert not rules.qsgd(torch.zeros(3), random(), levels=4, bucket=2).tensor.any()


def test_signs_go_with_the_mean_of_the_absolute_values() -> None:
    sent = rules.sign(FOUND, random())
    assert sent.tensor.abs().unique().tolist() == [0.0, pytest.approx(10.5 / 6)]
    assert sent.bits == 32 + 6
    # <C(v), v> = ‖v‖₁²/n
    assert float((sent.tensor * FOUND).sum()) == pytest.approx(10.5**2 / 6)


def test_a_matrix_of_low_rank_arrives_whole_and_a_vector_too() -> None:
    draw = random()
    matrix = torch.randn(20, 2, generator=draw) @ torch.randn(2, 30, generator=draw)
    sent = rules.low_rank(matrix.view(20, 5, 6), random(1), rank=2)
    torch.testing.assert_close(sent.tensor.flatten(1), matrix, rtol=1e-4, atol=1e-4)
    assert sent.bits == 32 * 2 * 50
    other = torch.randn(20, 30, generator=draw)
    assert not torch.allclose(rules.low_rank(other, random(1), rank=2).tensor, other, atol=0.1)
    assert torch.equal(rules.low_rank(FOUND, random(), rank=2).tensor, FOUND)  # no smaller
    assert torch.equal(rules.low_rank(torch.ones(5), random(), rank=1).tensor, torch.ones(5))


def compressing(
    rule: Callable[..., rules.Sent], begun: Tensor, state: dict, rescale: bool = False
) -> Compression:
    kind = type(
        "Kind", (Compression,), {"rule": staticmethod(rule), "feedback": True, "rescale": rescale}
    )
    samples = TrainedOn(torch.ones(1), torch.ones(1), 2, lambda x: x, lambda purpose: random(3))
    return kind({"w": begun}, {}, LocalRun(0.1, state=state, samples=samples))


@pytest.mark.parametrize(
    "rule", [partial(rules.top_k, share=0.2), rules.sign, partial(rules.low_rank, rank=1)]
)
def test_what_was_left_out_is_remembered(rule: Callable[..., rules.Sent]) -> None:
    """All that arrived, and the memory, is all that was to be sent."""
    state: dict[str, dict[str, Tensor]] = {}
    draw, arrived, meant = random(), torch.zeros(4, 5), torch.zeros(4, 5)
    for _ in range(7):
        begun, update = torch.randn(4, 5, generator=draw), torch.randn(4, 5, generator=draw)
        shared = compressing(rule, begun, state).share({"w": begun + update, "s": torch.ones(2)})
        assert shared["s"].tolist() == [1, 1]  # is not trained
        arrived, meant = arrived + shared["w"] - begun, meant + update
    torch.testing.assert_close(arrived + state["compression"]["w"], meant, rtol=1e-4, atol=1e-5)


def test_rescaled_a_tensor_has_mean_and_variance_of_the_trained_one() -> None:
    draw = random()
    begun, trained = torch.randn(6, 7, generator=draw), 2 * torch.randn(6, 7, generator=draw) + 1
    one = compressing(partial(rules.top_k, share=0.1), begun, {}, rescale=True)
    found = one.share({"w": trained})["w"]
    torch.testing.assert_close(found.mean(), trained.mean())
    torch.testing.assert_close(found.std(), trained.std())
    assert one.end()["wire-bytes"] == (4 * (32 + 6) + 64) / 8


def played(folder: Path, cache: Path, *overrides: str) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    simulate(compose([*SMALL, f"cache_dir={cache}", *overrides]), folder)
    return pd.read_csv(folder / "history.csv"), load_file(folder / "model.safetensors")


def test_all_of_the_entries_are_fedavg_and_few_are_fewer_bytes(tmp_path: Path) -> None:
    plain = played(tmp_path / "plain", tmp_path / "c")
    whole = played(tmp_path / "whole", tmp_path / "c", "compress=top_k", "compress.share=1.0")
    few = played(tmp_path / "few", tmp_path / "c", "compress=top_k", "compress.share=0.1")
    for name, tensor in plain[1].items():
        torch.testing.assert_close(whole[1][name], tensor, rtol=1e-4, atol=1e-5)
    size = sum(tensor.numel() for tensor in plain[1].values())
    assert few[0]["bytes_up"][0] < plain[0]["bytes_up"][0] / 6
    assert few[0]["bytes_down"].tolist() == plain[0]["bytes_down"].tolist()
    assert few[0]["bytes_up"][0] == pytest.approx(4 * 0.1 * size * (32 + 12) / 8, rel=0.1)
    assert (few[0]["simulated_seconds"] < plain[0]["simulated_seconds"]).all()


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("name", ["top_k", "random_k", "qsgd", "sign", "low_rank"])
def test_alone_in_stacks_and_on_two_workers_the_same_arrives(name: str, tmp_path: Path) -> None:
    words = [f"compress={name}", "wsa=on"]  # whose scopes are those of what arrives
    ways = {
        "alone": ["runtime.cohort=off", "runtime.workers=1"],
        "stacks": ["runtime.cohort=4", "runtime.workers=1"],
        "workers": ["runtime.cohort=off", "runtime.workers=2"],
    }
    found = {
        way: played(tmp_path / way, tmp_path / "c", *words, *more, "rounds=2")
        for way, more in ways.items()
    }
    bytes_up = found["alone"][0]["bytes_up"].tolist()
    for way in ("stacks", "workers"):
        assert found[way][0]["bytes_up"].tolist() == bytes_up
        for key, tensor in found["alone"][1].items():
            torch.testing.assert_close(found[way][1][key], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("compress=top_k strategy=dp_server_fixed", r"compress: clients of a private run"),
        ("compress=sign privacy.local='{clipping_norm: 1.0, epsilon: 1}'", r"compress: clients of"),
        (
            "compress=random_k compress.unbiased=true",
            r"compress\.unbiased: with compress\.feedback",
        ),
        ("compress=top_k compress.share=0", r"compress\.share"),
        ("compress=sign strategy=centralised", r"compress: Centralised has no clients"),
    ],
)
def test_what_cannot_be_compressed_is_refused_in_one_line(
    words: str, message: str, tmp_path: Path
) -> None:

    with pytest.raises(ConfigError, match=message):
        simulate(compose([f"cache_dir={tmp_path}/c", *shlex.split(words)]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
