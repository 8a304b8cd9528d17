"""How learngenes are learned: distillation, its schedule, trainings that are interrupted."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from fedwsa.learngene.fit import Recipe, distillation, fit
from fedwsa.learngene.pretrain import School
from fedwsa.learngene.resume import Resume
from fedwsa.models import build_model
from fedwsa.models.flops import forward_flops, step_flops
from fedwsa.models.inputs import ImageShape
from fedwsa.schema.compose import compose
from tests.given.architecture import IMAGE, component
from tests.given.learngene import CLASSES, lesson


def test_distillation_is_ce_plus_the_softened_kl() -> None:
    teacher, given = nn.Linear(4, 3), torch.randn(5, 3)
    x, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    wanted = softmax(teacher(x) / 2, 1)
    soft = kl_div(log_softmax(given / 2, 1), wanted, reduction="sum") / 5
    torch.testing.assert_close(
        distillation(teacher, 2.0, 0.5)(x, given, y), 4 * soft + 0.5 * cross_entropy(given, y)
    )
    torch.testing.assert_close(distillation(teacher, 2.0, 0.0)(x, teacher(x), y), torch.tensor(0.0))


def test_the_learning_rate_rises_and_falls_as_a_cosine() -> None:
    recipe = Recipe(10, warmup=0.2)
    assert [recipe.rate(s) for s in (0, 1, 2, 6)] == [0.5, 1.0, 1.0, 0.5]
    assert replace(recipe, cosine=False).rate(9) == 1.0


def small() -> nn.Module:
    return build_model(component("resnet.resnet", norm="batch", depth=8), IMAGE, CLASSES, 0)


def test_a_training_that_is_interrupted_goes_on_to_the_same_end(tmp_path: Path) -> None:
    recipe = Recipe(6, batch_size=16)

    whole = small()
    fit(whole, lesson(), recipe, purpose="test")

    class Stop(Exception):
        pass

    def stop(step: int, loss: float) -> None:
        if step == 4:
            raise Stop

    def resume(key: str = "same") -> Resume:
        return Resume(tmp_path / "state.safetensors", key, every=0.0)

    broken = small()
    with pytest.raises(Stop):
        fit(broken, lesson(), recipe, purpose="test", report=stop, resume=resume())
    after = resume()
    again = small()
    fit(again, lesson(), recipe, purpose="test", resume=after)
    assert after.found == 3
    for key, tensor in whole.state_dict().items():
        if "num_batches" not in key:
            assert torch.equal(again.state_dict()[key], tensor), key
    done = resume()
    fit(again, lesson(), recipe, purpose="test", resume=done)  # nothing is left to do
    assert done.found == 6
    done.forget()
    assert not (tmp_path / "state.safetensors").exists()


def test_ctrl_c_keeps_the_step_and_pressed_again_ends_it_at_once(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    model = small()
    before = signal.getsignal(signal.SIGINT)

    def press(times: int) -> Resume:
        seen: list[int] = []

        def report(step: int, loss: float) -> None:
            seen.append(step)
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

        resume = Resume(file, "same", every=1e9)  # not because it is time
        with pytest.raises(KeyboardInterrupt):
            fit(model, lesson(), Recipe(6), purpose="test", report=report, resume=resume)
        assert len(seen) == 1
        assert signal.getsignal(signal.SIGINT) is before
        return resume

    press(2)
    assert not file.exists()
    press(1)
    assert press(2).found == 1


def test_where_ctrl_c_is_ignored_a_training_ignores_it(tmp_path: Path) -> None:
    pressed: list[int] = []

    def report(step: int, loss: float) -> None:
        pressed.append(step)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        resume = Resume(tmp_path / "state.safetensors", "same")
        fit(small(), lesson(), Recipe(2), purpose="test", report=report, resume=resume)
    finally:
        signal.signal(signal.SIGINT, before)
    assert pressed


def test_the_state_of_another_training_is_not_gone_on_with(tmp_path: Path) -> None:
    file, model = tmp_path / "state.safetensors", nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    Resume(file, "one", every=0.0).keep(3, model, list(model.parameters()), optimizer)
    assert Resume(file, "other").restore(model, list(model.parameters()), optimizer) == 0
    assert Resume(file, "one").restore(model, list(model.parameters()), optimizer) == 3


def test_a_training_under_another_teacher_is_another_training(tmp_path: Path) -> None:
    (file := tmp_path / "teacher.safetensors").write_bytes(b"one")
    config = compose(["init=tleg", "init.public=0.1", f"pretraining.teacher={file}"])
    school = School(config.init, config.pretraining, config.model, [config.model], lesson(), "")
    before = school.key("learn")
    assert school.key("learn") == before != school.key("teach")
    file.write_bytes(b"two")
    assert school.key("learn") != before


def test_operations_are_counted_as_by_hand() -> None:
    """A linear layer 3·2·2 → 5 for 4 images: 2·4·12·5 forward, the same for its weight's
    gradient; the images need none."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    assert forward_flops(model, ImageShape(3, 2, 2), 4) == 2 * 4 * 12 * 5
    assert step_flops(model, ImageShape(3, 2, 2), 4) == 2 * 2 * 4 * 12 * 5
