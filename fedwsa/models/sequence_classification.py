"""Networks of transformers that classify texts, by the name of an architecture or pretrained."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from fedwsa.config.blame import blaming
from fedwsa.config.nearest import nearest
from fedwsa.models import DocumentShape
from fedwsa.models.architecture import described
from fedwsa.models.pretrained import DEFAULT, freeze_found, load_stored, stored

# transformers is imported where a network is made: it takes seconds.

logger = logging.getLogger("fedwsa")


class _Classifier(nn.Module):
    """Tokens ``(N, T)`` → scores ``(N, classes)``; inside is transformers' network."""

    def __init__(self, network: Any, padding: int, prepared: bool) -> None:
        super().__init__()
        self.network, self.padding, self.prepared = network, padding, prepared

    def forward(self, tokens: Tensor) -> Tensor:
        seen = tokens != self.padding
        mask = _prepared(seen, self.network.dtype) if self.prepared else seen.long()
        scores: Tensor = self.network(input_ids=tokens, attention_mask=mask).logits
        return scores


def _prepared(seen: Tensor, kind: torch.dtype) -> Tensor:
    """What is added to attention, ``(N, 1, T, T)``: less than nothing where there is padding.

    transformers makes it of a mask ``(N, T)`` itself, but looks at the values for that, which
    clients in a stack do not allow.
    """
    least = torch.finfo(kind).min
    return torch.where(seen[:, None, None, :].expand(-1, 1, seen.shape[1], -1), 0.0, least)


@described(lambda arguments: None)
def transformers(
    document: DocumentShape,
    classes: int,
    *,
    name: str,
    settings: dict[str, Any] | None,
    weights: str | None,
    freeze: str | None,
) -> nn.Module:
    """A network of transformers that classifies sequences.

    Parameters
    ----------
    name
        An architecture that transformers has, such as ``distilbert``, or a pretrained network: its
        folder, or its name on the Hub.
    settings
        What its configuration says otherwise, by the names that transformers has for it.
    weights
        None: drawn. ``DEFAULT``: those of the folder, or of the Hub by way of its cache. Else a
        file: safetensors, or a state dict that torch has saved. A classifier of other classes is
        drawn anew.
    freeze
        A regular expression: parameters whose names it is found in are not trained.

    Raises
    ------
    ValueError
        If there is no such network, it has no such setting, or is too small for the texts.
    """
    if find_spec("transformers") is None:
        raise ValueError("needs the package transformers: pip install 'fedwsa[transformers]'")
    from transformers.utils import logging as told

    # What it says of a classifier that is drawn anew is meant here.
    told.set_verbosity_error()  # type: ignore[no-untyped-call]
    told.disable_progress_bar()  # type: ignore[no-untyped-call]
    config = _configured(document, classes, name, settings or {})
    network = _pretrained(name, config) if weights == DEFAULT else _drawn(config)
    model = _Classifier(network, document.padding, _takes_prepared(network, document))
    if model.prepared:
        _learn_padding(network)
    if weights not in (None, DEFAULT):
        found = stored(weights)
        ours = found.keys() & model.state_dict().keys()  # else the file is transformers'
        load_stored(model if ours else network, found, weights)
    if freeze is not None:
        freeze_found(model, freeze)
    return model


def _configured(
    document: DocumentShape, classes: int, name: str, settings: Mapping[str, Any]
) -> Any:
    """The configuration of a network, fitted to the texts."""
    import fedwsa.models.torchvision_loader  # noqa: F401  transformers takes torchvision

    # isort: split
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as known,
    )

    fitted: dict[str, int | None] = {}
    try:
        if name in known:
            usual = AutoConfig.for_model(name)
            fitted = {"vocab_size": document.vocabulary, "pad_token_id": document.padding}
            fitted |= dict.fromkeys(("bos_token_id", "eos_token_id"))
        else:
            usual = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"transformers has no architecture {name} ({nearest(name, known)}); nor is it a "
            f"folder, in the cache, or to be fetched: {reason}"
        ) from None
    if usual.model_type not in known:
        raise ValueError(f"{name} is a {usual.model_type}, which classifies no sequences")
    if unknown := next((key for key in settings if not hasattr(usual, key)), None):
        keys = sorted(key for key in usual.to_dict() if not key.startswith("_"))
        raise ValueError(f"settings: {usual.model_type} has no {unknown}; {nearest(unknown, keys)}")
    # Made anew, since some settings follow from others.
    made = {**fitted, **settings}
    with blaming(ValueError, "settings: "):
        if name in known:
            config = AutoConfig.for_model(name, **made)
        else:
            config = AutoConfig.from_pretrained(name, **made)
    config.num_labels, config.problem_type = classes, "single_label_classification"
    _require_room(document, name, config)
    return config


def _require_room(document: DocumentShape, name: str, config: Any) -> None:
    """Refuse texts that are too long for a network, or of tokens that it does not know."""
    room = getattr(config, "max_position_embeddings", None) or 0
    if 0 < room < document.length:
        raise ValueError(
            f"{name} reads {room} tokens at most, the texts have {document.length}; "
            "dataset.sequence makes them shorter"
        )
    if config.vocab_size < document.vocabulary:
        raise ValueError(
            f"{name} knows {config.vocab_size} tokens, the texts have {document.vocabulary}; "
            "dataset.tokenizer names the network's own tokenizer"
        )
    if config.vocab_size != document.vocabulary:
        logger.info(
            "model: %s knows %d tokens, the texts have %d: dataset.tokenizer should name its own",
            *(name, config.vocab_size, document.vocabulary),
        )


def _drawn(config: Any) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
        config, attn_implementation="eager"
    )


def _pretrained(name: str, config: Any) -> Any:
    from transformers import AutoModelForSequenceClassification

    try:
        network, found = AutoModelForSequenceClassification.from_pretrained(
            name,
            config=config,
            attn_implementation="eager",
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"weights=DEFAULT: no model.safetensors of {name} in a folder or the cache, and none "
            f"can be fetched: {reason}"
        ) from None
    body = f"{network.base_model_prefix}."
    other = sorted(str(key[0]) for key in found["mismatched_keys"])
    if wrong := next((key for key in other if key.startswith(body)), None):
        raise ValueError(f"weights=DEFAULT: {wrong} of {name} has another shape: leave settings")
    if drawn := sorted({*found["missing_keys"], *other}):
        logger.info("model: drawn anew, not of %s: %s", name, ", ".join(drawn))
    return network


def _learn_padding(network: nn.Module) -> None:
    """Spare padding its exception: nothing looks at it, so its vector has no gradient anyway.

    torch's rule for stacks knows the exception for the first client of a stack alone (2.13).
    """
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None


@torch.no_grad()
def _takes_prepared(network: Any, document: DocumentShape) -> bool:
    """Whether a mask that is prepared gives the same scores: tried, since no one says it."""
    length, mode = min(4, document.length), network.training
    tokens = torch.full((2, length), (document.padding + 1) % document.vocabulary)
    tokens[0, length // 2 :] = document.padding
    answers = []
    for prepared in (False, True):
        try:
            answers.append(_Classifier(network.eval(), document.padding, prepared)(tokens))
        except (RuntimeError, ValueError, TypeError, IndexError):
            if not prepared:
                raise
    network.train(mode)
    return len(answers) == 2 and torch.allclose(answers[0], answers[1], atol=1e-6)
