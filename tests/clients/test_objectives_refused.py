"""What a client half may not do is refused in words that name it; who trains alone does."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from clients.cohort import train_stack
from clients.replying import Trained, reply_with
from clients.stack import Stack
from clients.training import Samples, train
from fedwsa.algorithms.memory.client import keep
from fedwsa.algorithms.objective import LocalRun, Objective, stacks
from fedwsa.algorithms.objectives import OBJECTIVES
from fedwsa.algorithms.traits import Traits
from fedwsa.config.component import ConfigError
from fedwsa.data.federated import open_federated
from fedwsa.schema.compose import compose
from fedwsa.schema.conditions import Conditions
from fedwsa.schema.config import Config
from server.sizes import SizedModels
from server.strategy import build_strategy
from tests.given.training import data, local, net


class Quiet(Objective):
    """Does nothing; what a test gives it replaces its hooks."""

    def __init__(self, model=None, content=None, local=None, **hooks) -> None:
        vars(self).update(hooks)


def test_a_loss_is_stacked_where_it_is_said_what_it_looks_at() -> None:
    assert stacks(Quiet)
    loss = {"loss": lambda self, seen: seen.inputs}
    assert not stacks(type("Alone", (Quiet,), loss))
    others = {"others": lambda self: {}}
    assert stacks(type("Together", (Quiet,), loss | others))
    assert not stacks(type("Silent", (Quiet,), loss | others | {"stackable": False}))
    assert all(map(stacks, OBJECTIVES))


class Losing(Quiet):
    """A loss of whatever a test returns."""

    def loss(self, seen):
        return self.said(seen)

    def others(self):
        return self.of


@pytest.mark.parametrize(
    ("said", "of", "message"),
    [
        (lambda seen: seen.inputs.sum(), {}, r"Losing\.loss\(\) must return .* each sample"),
        (lambda seen: 0.0, {}, r"Losing\.loss\(\) must return .* each sample"),
        (lambda seen: seen.represented()[:1], {}, r"must return .* each sample"),
        (lambda seen: seen.represented(), {"x": {"w": torch.ones(1)}}, "the model has no w$"),
    ],
)
@pytest.mark.parametrize("together", [False, True])
def test_what_is_no_loss_of_samples_is_refused(said, of, message: str, together: bool) -> None:
    model, settings = net(), local(epochs=1)
    samples = Samples(*data(4), lambda p: p, torch.Generator())
    conditions, objective = Conditions.usual(settings), Losing(said=said, of=of)
    if together:
        of_two = ([samples] * 2, settings, [conditions] * 2, [[objective]] * 2)
        training = partial(train_stack, Stack(model, 2), *of_two)
    else:
        training = partial(train, model, samples, settings, conditions, [objective])
    with pytest.raises(ValueError, match=message):
        training()
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.fixture(scope="module")
def config() -> Config:
    return compose([])


def answered(config: Config, objective: Objective, **state) -> Message:
    arrays = ArrayRecord({})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})})
    context = Context(1, 1, {}, RecordDict(), {})
    local = LocalRun(0.1, state=state, examples=3, trained={"w": torch.ones(2)})
    trained = Trained(0.5, [objective], local)
    return reply_with(config, Message(content, 1, "train"), context, trained)


@pytest.mark.usefixtures("task_identity")
@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"records": lambda: {"arrays": {"w": torch.zeros(2)}}}, r"Quiet\.records.*arrays already"),
        (
            {"records": lambda: {"metrics": {}}},
            r"Quiet\.records.*metrics already",
        ),
        ({"arrays": lambda: {"w": torch.zeros(2)}}, r"Quiet\.arrays\(\): the reply has w already"),
        ({"end": lambda: {"num-examples": 9}}, r"Quiet\.end\(\): the reply has num-examples"),
        ({"end": lambda: {"train_loss": 0.0}}, r"Quiet\.end\(\): the reply has train_loss already"),
        ({"end": lambda: None}, r"Quiet\.end\(\): TypeError"),
        ({"share": lambda weights: None}, r"Quiet\.share\(\): TypeError"),
        ({"records": lambda: {"mine": torch.ones(1)}}, r"Quiet\.records\(\): AttributeError"),
    ],
)
def test_a_reply_is_not_written_over(hooks, message: str, config: Config) -> None:
    with pytest.raises(ValueError, match=message):
        answered(config, Quiet(**hooks))


@pytest.mark.usefixtures("task_identity")
def test_what_has_names_of_its_own_is_sent(config: Config) -> None:
    said = {"arrays": lambda: {"v": torch.zeros(1)}, "records": lambda: {"m": {"w": torch.ones(2)}}}
    reply = answered(config, Quiet(end=lambda: {"mine": 1.0}, **said))
    assert list(reply.content["arrays"]) == ["w", "v"]
    assert list(reply.content["m"]) == ["w"]
    assert reply.content["metrics"]["mine"] == 1.0


@pytest.mark.parametrize("name", ["rounds", "before/mine"])
def test_names_that_a_client_s_memory_uses_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"cannot keep '{name}' in its state"):
        keep({}, {}, {name: {"n": torch.ones(1)}})


@pytest.mark.parametrize("kept", [torch.ones(1), {"n": 1}])
def test_only_tensors_by_name_are_kept(kept) -> None:
    with pytest.raises(TypeError, match=r"^state\['mine'\] must hold tensors by name"):
        keep({}, {}, {"mine": kept})


def test_traits_are_checked_where_they_are_written() -> None:
    for wrong in ((FedAvg,), [Quiet], Quiet, ("mine.Quiet",)):
        with pytest.raises(ValueError, match="objectives must be a tuple of subclasses of"):
            Traits(objectives=wrong)
    for wrong in (("down", "up"), [("down", "up")], (("down",),)):
        with pytest.raises(ValueError, match="answers must be a tuple of pairs"):
            Traits(answers=wrong)


class Brings(FedAvg):
    traits = Traits(objectives=(Quiet,))


def made() -> FedAvg:
    return Brings()


class Dict(FedAvg):
    traits = {"needs_sgd": True}  # noqa: RUF012


class OnInstance(FedAvg):
    def __init__(self) -> None:
        super().__init__()
        self.traits = replace(Traits(), needs_sgd=True)


def built(name: str, tmp_path) -> object:
    config = compose([f"strategy._target_={__name__}.{name}", f"cache_dir={tmp_path}"])
    whole = open_federated(config.data_spec).whole
    return build_strategy(config, SizedModels.of(config, whole.shape, whole.classes))


def test_a_function_says_which_client_half_its_strategy_brings(tmp_path) -> None:
    assert isinstance(built("Brings", tmp_path), FedAvg)
    with pytest.raises(ConfigError, match=r"made makes a strategy that brings Quiet: say made\.tr"):
        built("made", tmp_path)


@pytest.mark.parametrize("name", ["Dict", "OnInstance"])
def test_what_looks_like_traits_and_is_none_is_told(name: str, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fedwsa"), "propagate", True)
    built(name, tmp_path)
    assert f"{name}.traits means nothing" in caplog.text
