"""Systems that the tests do not run on: what is known of them can be told here."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from fedwsa import launcher
from fedwsa.config.component import ConfigError
from fedwsa.fleet import devices
from fedwsa.scope import moments
from fedwsa.simulation.cluster import cores


def test_where_nobody_says_which_cores_are_ours_all_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == os.cpu_count()


def test_windows_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match=r"^fedwsa: runs on Linux and macOS; on Windows, in its S"):
        launcher.simulate()


def test_an_apple_gpu_is_taken_where_torch_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for there in (True, False):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=there: there)
        assert devices.resolve_device("auto") == ("mps" if there else "cpu")
    with pytest.raises(ConfigError, match=r"^device: there is no Apple GPU here"):
        devices.resolve_device("mps")


def test_moments_do_without_double_precision_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert moments.widest(torch.device("mps")) == torch.float32
    monkeypatch.setattr(moments, "widest", lambda device: torch.float32)
    tensors = [torch.randn(40, 30) * 0.3 + 0.05, torch.randn(7)]
    expected = [torch.var_mean(t.double(), correction=0) for t in tensors]
    found = [
        moments.moments(tensors),
        moments.exact_moments(tensors),
        [m[:, 0] for m in moments.stacked_moments([t[None] for t in tensors])],
    ]
    for mean, variance in found:
        assert mean.dtype == torch.float32
        for i, (var, mu) in enumerate(expected):
            assert float(mean[i]) == pytest.approx(float(mu), abs=1e-6)
            assert float(variance[i]) == pytest.approx(float(var), rel=1e-5)
