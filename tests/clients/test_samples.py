"""Where the samples of clients lie."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from clients import samples
from fedwsa.data.examples import Examples
from fedwsa.data.federated import FederatedData
from fedwsa.remembered import enter


@pytest.mark.parametrize(("free", "there"), [(10**6, True), (100, False)])
def test_the_pool_lies_on_a_gpu_once_if_it_has_room_for_it(
    free: int, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(None)
    monkeypatch.setattr(samples, "free_bytes", lambda device: free)
    pool = Examples(torch.zeros(10, 3, 4, 4, dtype=torch.uint8), torch.arange(10))
    data = FederatedData(SimpleNamespace(train=pool), *[None] * 3, seed=0)  # type: ignore[arg-type]
    found = samples.resident(data, "meta")  # in the place of a GPU
    assert (found.inputs.device.type == found.labels.device.type == "meta") == there
    assert found.inputs.dtype == torch.uint8
    assert samples.resident(data, "meta") is found
    # By the indices of a client, which lie in the processor's memory.
    assert found[torch.tensor([3, 1])].inputs.shape == (2, 3, 4, 4)
