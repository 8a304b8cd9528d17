"""Networks for text: what they see, how they are trained, scored and sized."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from clients.cohort import train_stack, why_not
from clients.stack import Stack
from clients.stacking import stacking
from clients.training import Conditions, Samples, train
from fedwsa.config.component import ConfigError
from fedwsa.config.places import options
from fedwsa.data.evaluation import evaluate
from fedwsa.data.examples import Examples
from fedwsa.data.text import TextData
from fedwsa.learngene.fit import distillation
from fedwsa.models import build_model
from fedwsa.models.flops import forward_flops
from fedwsa.models.inputs import ImageShape, TextShape
from fedwsa.schema.compose import compose
from fedwsa.schema.sections import Local

LENGTH, CLASSES = 12, 9
MODELS = ["char_lstm", "char_transformer"]


def network(name: str, *overrides: str) -> nn.Module:
    config = compose([f"model={name}", "model.width=0.25", "model.depth=2", *overrides])
    return build_model(config.model, TextShape(LENGTH), CLASSES, seed=0)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, CLASSES, shape, generator=torch.Generator().manual_seed(seed))


def local(**changes: object) -> Local:
    settings = {"epochs": 2, "batch_size": 4, "lr": 0.1, "momentum": 0.5}
    return compose().local.model_copy(update={**settings, **changes})


def conditions(settings: Local, lr: float = 0.1, weight_decay: float = 0.0) -> Conditions:
    return replace(Conditions.usual(settings), lr=lr, weight_decay=weight_decay)


def fit(model: nn.Module, data: Samples, settings: Local) -> float:
    return train(model, data, settings, conditions(settings), [])


def samples(n: int = 10) -> Samples:
    random = torch.Generator().manual_seed(n)
    return Samples(tokens(n, LENGTH), tokens(n, LENGTH, seed=1), lambda t: t.long(), random)


@pytest.mark.parametrize("name", MODELS)
def test_no_later_character_changes_an_earlier_prediction(name: str) -> None:
    model, text = network(name).eval(), tokens(3, LENGTH)
    answer = model(text)
    assert answer.shape == (3, CLASSES, LENGTH)
    for place in range(LENGTH):
        changed = text.clone()
        changed[:, place] = (changed[:, place] + 1) % CLASSES
        other = model(changed)
        assert torch.equal(other[:, :, :place], answer[:, :, :place])
        # Its own prediction does change, and so does the last one: it remembers.
        assert (other[:, :, place] != answer[:, :, place]).any()
        assert (other[:, :, -1] != answer[:, :, -1]).any()


@pytest.mark.parametrize("name", MODELS)
def test_a_shorter_text_is_answered_as_the_beginning_of_a_longer_one(name: str) -> None:
    model, text = network(name).eval(), tokens(2, LENGTH)
    torch.testing.assert_close(model(text[:, :5]), model(text)[:, :, :5])


def test_parameters_by_hand() -> None:
    # 32 units. LSTM: 4 gates of 32 units that read 32 + 32 numbers, with two biases.
    assert count(network("char_lstm")) == 9 * 32 + 2 * 4 * 32 * (32 + 32 + 2) + (32 + 1) * 9
    # A block: two norms, q, k, v, projection, 32 → 128 → 32.
    block = 2 * 2 * 32 + (32 + 1) * 4 * 32 + (32 + 1) * 128 + (128 + 1) * 32
    shell = (9 + LENGTH) * 32 + 2 * 32 + (32 + 1) * 9
    assert count(network("char_transformer")) == 2 * block + shell


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_every_model_is_refused_for_the_other_kind_by_a_line_that_names_what_fits() -> None:
    pictures = sorted(set(options("model")) - {*MODELS, "cnn1d", "transformers"})
    for name in MODELS:
        with pytest.raises(ConfigError) as caught:
            build_model(compose([f"model={name}"]).model, ImageShape(3, 32, 32), 10, seed=0)
        expected = f"{name} is for text, and the data are images; take one of {', '.join(pictures)}"
        assert str(caught.value) == f"model: {expected}"
    for name in pictures:
        component = compose([f"model={name}"]).model
        with pytest.raises(ConfigError) as caught:
            build_model(component, TextShape(80), 65, seed=0, where="sizes.S")
        kinds = "images and tables and time series" if name == "mlp" else "images"
        expected = f"sizes.S: {component.name} is for {kinds}, and the data are text; take one of "
        assert str(caught.value) == expected + ", ".join(MODELS)


def test_a_transformer_of_no_whole_heads_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"width 0.3 gives 38 units, which are no heads of 32"):
        network("char_transformer", "model.width=0.3")
    with pytest.raises(ConfigError, match="heads=5 does not divide 32 units"):
        network("char_transformer", "model.heads=5")


def test_operations_of_a_recurrent_layer_are_counted() -> None:
    # Each position: 4·32 gates from 32 + 32 numbers in each of two layers, then the classifier.
    per_position = 2 * (2 * 4 * 32 * (32 + 32) + 32 * CLASSES)
    assert forward_flops(network("char_lstm"), TextShape(LENGTH), 3) == 3 * LENGTH * per_position


def test_accuracy_and_loss_are_per_character() -> None:
    """A model that always answers 0, with logit 2: right where the label is 0."""

    class Zero(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(x), 3, x.shape[1])
            logits[:, 0] = 2.0
            return logits

    inputs = torch.zeros(3, 4, dtype=torch.uint8)
    labels = torch.tensor([[0, 1, 2, 0], [0, 0, 0, 1], [2, 2, 1, 1]])
    some = Examples(inputs, labels)
    score = evaluate(Zero(), some, TextData(some, some, 3, "abc"), "cpu", batch_size=2)
    assert (score.accuracy, score.examples) == (5 / 12, 3)
    exponentials = torch.tensor([2.0, 0.0, 0.0]).exp()
    hit, miss = -(exponentials / exponentials.sum()).log()[:2]
    assert score.loss == pytest.approx(float(5 * hit + 7 * miss) / 12, rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_descends_the_mean_loss_over_characters(name: str) -> None:
    once = local(epochs=1, batch_size=100, momentum=0.0, weight_decay=0.0)
    model, before, data = network(name), network(name), samples()
    loss = fit(model, data, once)
    logits = before(data.inputs).log_softmax(1)
    expected = -logits.gather(1, data.labels[:, None]).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    for new, old in zip(model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.1 * old.grad, rtol=1e-4, atol=1e-6)


def test_characters_that_a_client_never_writes_can_be_left_out_of_its_loss() -> None:
    once = local(epochs=1, batch_size=100, momentum=0.0, weight_decay=0.0, mask_absent=True)
    model, before, data = network("char_lstm"), network("char_lstm"), samples()
    data.labels[data.labels == 4] = 3
    loss = fit(model, data, once)
    logits = before(data.inputs)
    mask = torch.ones(1, CLASSES, 1)
    mask[0, 4] = 0.0
    assert loss == pytest.approx(cross_entropy(logits * mask, data.labels).item(), rel=1e-5)
    assert torch.equal(model.head.weight[4], before.head.weight[4])
    assert not torch.equal(model.head.weight[3], before.head.weight[3])


@pytest.mark.parametrize("name", MODELS)
def test_bf16_trains_close_to_fp32_and_not_the_same(name: str) -> None:
    exact, rounded = network(name), network(name)
    losses = [
        fit(exact, samples(), local()),
        fit(rounded, samples(), local(precision="bf16")),
    ]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=2**-6)
    assert {p.dtype for p in rounded.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", MODELS)
def test_channels_last_is_for_images_and_changes_no_text(name: str) -> None:
    plain, other = network(name), network(name)
    fit(plain, samples(), local())
    fit(other, samples(), local(channels_last=True))
    assert all(
        torch.equal(p, q) for p, q in zip(plain.parameters(), other.parameters(), strict=True)
    )


def test_a_cohort_of_transformers_trains_each_as_alone() -> None:
    sizes, settings = (11, 9, 4), local()  # three, two (the last of five) and one batches
    own = [conditions(settings, 0.05 * (k + 1), 0.01) for k in range(3)]
    assert why_not(settings) is None
    assert stacking(network("char_transformer"), TextShape(LENGTH), CLASSES).reason is None
    stack = Stack(network("char_transformer"), 3)
    losses = train_stack(stack, [samples(n) for n in sizes], settings, own, [[]] * 3)
    for k, n in enumerate(sizes):
        alone = network("char_transformer")
        loss = train(alone, samples(n), settings, own[k], [])
        assert losses[k] == pytest.approx(loss, rel=1e-5)
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(
                stack.weights[name][k], parameter.detach(), rtol=1e-4, atol=1e-5
            )


def test_recurrent_layers_are_trained_one_by_one_and_say_why() -> None:
    found = stacking(network("char_lstm"), TextShape(LENGTH), CLASSES)
    assert found.reason == "torch has no stacked LSTM"


def test_distilling_text_is_the_mean_of_distilling_each_position() -> None:
    """As if each position were an example of its own."""
    teacher, logits = network("char_lstm").eval(), torch.randn(3, CLASSES, LENGTH)
    text, labels = tokens(3, LENGTH), tokens(3, LENGTH, seed=1)
    found = distillation(teacher, 2.0, 0.5)(text, logits, labels)

    class Flat(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return flat(teacher(x))

    def flat(answers: torch.Tensor) -> torch.Tensor:
        return answers.transpose(1, 2).reshape(-1, CLASSES)

    expected = distillation(Flat(), 2.0, 0.5)(text, flat(logits), labels.flatten())
    torch.testing.assert_close(found, expected)
