"""Networks of transformers that classify texts, beside transformers itself."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fedwsa.models.torchvision_loader  # noqa: F401  transformers takes torchvision

# isort: split
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from clients.stacking import stacking
from fedwsa.config.component import Component, ConfigError
from fedwsa.models import DocumentShape, ImageShape, build_model

SHAPE, CLASSES = DocumentShape(12, 100, 0), 4
BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "attention_probs_dropout_prob": 0.0,
}
SMALL = {
    "bert": BERT,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "roberta": BERT,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},
}


def component(name: str, **keys: object) -> Component:
    usual = {"settings": SMALL.get(name), "weights": None, "freeze": None}
    target = "fedwsa.models.sequence_classification.transformers"
    return Component.model_validate({"_target_": target, "name": name, **usual, **keys})


def built(name: str, classes: int = CLASSES, shape: DocumentShape = SHAPE, **keys: object):
    return build_model(component(name, **keys), shape, classes, 0).eval()


def texts(shape: DocumentShape = SHAPE) -> torch.Tensor:
    """Three of the full length, of half of it, and of one token."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, shape.vocabulary, (3, shape.length), generator=random)
    for row, length in enumerate((shape.length, shape.length // 2, 1)):
        tokens[row, length:] = shape.padding
    return tokens


@pytest.mark.parametrize("name", SMALL)
def test_scores_are_those_that_transformers_gives_to_texts_and_their_mask(name: str) -> None:
    model, tokens = built(name), texts()
    settings = {**SMALL[name], "vocab_size": 100, "pad_token_id": 0, "num_labels": CLASSES}
    theirs = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(name, **settings))
    theirs.eval().load_state_dict(model.network.state_dict())
    expected = theirs(input_ids=tokens, attention_mask=(tokens != 0).long()).logits
    torch.testing.assert_close(model(tokens), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta"])
def test_padding_says_nothing(name: str) -> None:
    model, tokens = built(name), texts()
    short = model(tokens[1:2, : SHAPE.length // 2])
    torch.testing.assert_close(model(tokens)[1:2], short, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta"])
def test_padding_learns_nothing(name: str) -> None:
    model = built(name)
    model(texts()).logsumexp(1).sum().backward()
    words = model.network.get_input_embeddings().weight
    assert words.grad is not None
    assert words.grad[0].abs().max() == 0 < words.grad[1:].abs().max()


def test_clients_of_bert_are_stacked_and_others_say_why_not() -> None:
    assert stacking(built("bert"), SHAPE, CLASSES, batch=64).reason is None
    assert stacking(built("distilbert"), SHAPE, CLASSES).reason == "what it draws would be another"


def test_a_pretrained_network_keeps_all_but_its_classifier(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(3)
    config = AutoConfig.for_model("bert", **BERT, vocab_size=100, pad_token_id=0)
    AutoModel.from_config(config).save_pretrained(tmp_path / "body")
    with caplog.at_level(logging.INFO, "fedwsa"):
        model = built(str(tmp_path / "body"), weights="DEFAULT")
    stored = load_file(tmp_path / "body" / "model.safetensors")
    own = model.network.bert.state_dict()
    assert {k for k in own if not torch.equal(own[k], stored.get(k, own[k]))} == set()
    assert set(stored) == {k for k in own if "ids" not in k}
    assert "drawn anew, not of" in caplog.text
    assert "classifier.bias, classifier.weight" in caplog.text
    # One that was fine-tuned on other classes.
    model.network.save_pretrained(tmp_path / "tuned")
    other = built(str(tmp_path / "tuned"), classes=7, weights="DEFAULT")
    assert other(texts()).shape == (3, 7)
    again = built(str(tmp_path / "tuned"), weights="DEFAULT")
    assert torch.equal(again(texts()), model(texts()))
    # As files, with our names and with theirs.
    save_file(model.state_dict(), tmp_path / "ours.safetensors")
    for file in ("ours.safetensors", "tuned/model.safetensors"):
        named = built("bert", weights=str(tmp_path / file))
        assert torch.equal(named(texts()), model(texts()))


def test_what_is_frozen_is_not_trained() -> None:
    model = built("bert", freeze="encoder|embeddings")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        f"network.{layer}.{kind}"
        for layer in ("bert.pooler.dense", "classifier")
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("brt", {}, r"transformers has no architecture brt \(is it bert or "),
        ("vit", {}, "no architecture vit|vit, which classifies no sequences"),
        (
            "bert",
            {"settings": {"hiden_size": 3}},
            "settings: bert has no hiden_size; .*hidden_size",
        ),
        ("bert", {"settings": {"hidden_size": "x"}}, "settings: .*hidden_size"),
        ("bert", {"settings": {"max_position_embeddings": 9}}, "bert reads 9 tokens at most, the"),
        ("bert", {"settings": {"vocab_size": 50}}, "bert knows 50 tokens, the texts have 100"),
        ("bert", {"weights": "nowhere.safetensors"}, "weights: there is no .*nowhere.safetensors"),
        ("bert", {"freeze": "xyz"}, "freeze: 'xyz' is found in no name"),
    ],
)
def test_what_there_is_not_is_one_line(
    name: str, keys: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=f"^model: .*({message})") as caught:
        built(name, **keys)
    assert "\n" not in str(caught.value)


def test_settings_of_another_shape_than_the_stored_weights_are_refused(tmp_path: Path) -> None:
    built("bert").network.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"weights=DEFAULT: bert\..* has another shape: leave"):
        built(str(tmp_path), weights="DEFAULT", settings={"intermediate_size": 48})


def test_it_is_for_texts_with_a_label() -> None:
    with pytest.raises(ConfigError, match="transformers is for documents, and the data are images"):
        build_model(component("bert"), ImageShape(1, 8, 8), CLASSES, 0)
    message = "mlp is for .* and the data are documents; take one of transformers"
    mlp = {"_target_": "fedwsa.models.mlp.mlp", "width": 1.0, "depth": 2}
    with pytest.raises(ConfigError, match=message):
        build_model(Component.model_validate(mlp), SHAPE, CLASSES, 0)


def test_dropout_is_in_training_alone() -> None:
    model = built("distilbert")
    assert any(isinstance(m, nn.Dropout) for m in model.modules())
    assert torch.equal(model(texts()), model(texts()))
