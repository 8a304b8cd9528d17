"""Networks of timm and torchvision by their names, fitted to the data."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import nn

from fedwsa.config.nearest import nearest
from fedwsa.models import ImageShape
from fedwsa.models.architecture import Architecture, described
from fedwsa.models.families import FAMILIES, Family, convolution_like
from fedwsa.models.norms import norm_layer
from fedwsa.models.pretrained import DEFAULT, freeze_found, load_stored, stored
from fedwsa.models.torchvision_loader import torchvision as _torchvision

# isort: split
import timm as _timm  # after it: timm takes torchvision

logger = logging.getLogger("fedwsa")

NormOption = Literal["kept", "group"]


def _family(name: str) -> Family | None:
    """Of a network of timm."""
    return next((f for m, f in FAMILIES.items() if name in _timm.list_models(module=m)), None)


def _architecture(arguments: Mapping[str, object]) -> Architecture | None:
    family = _family(str(arguments["name"]))
    return None if family is None else family.architecture


@described(_architecture)
def timm(
    image: ImageShape,
    classes: int,
    *,
    name: str,
    weights: str | None,
    norm: NormOption,
    freeze: str | None,
    width: PositiveFloat,
    depth: PositiveInt | None,
) -> nn.Module:
    """A network of timm.

    Parameters
    ----------
    name
        As in ``timm.list_models()``.
    weights
        None: drawn. ``DEFAULT``: timm's pretrained ones, from its cache or the network. Else a
        file: safetensors, or a state dict that torch has saved. The classifier is drawn anew where
        its shape is another.
    norm
        ``group``: GroupNorm in the place of BatchNorm, whose statistics have no good average.
    freeze
        A regular expression: parameters whose names it is found in are not trained.
    width
        Times the channels or units of all layers; of vision transformers, ConvNeXts and ResNets.
    depth
        Blocks of a transformer, of each stage of the others; None: as the library has it.

    Raises
    ------
    ValueError
        If there is no such network, it has not this size, or the weights are of another.
    """
    _require_name("timm", name, _timm.list_models())
    settings: dict[str, Any] = {"num_classes": classes, "in_chans": image[0]}
    known = _timm.get_pretrained_cfg(name)
    if known is not None and known.fixed_input_size:
        settings["img_size"] = image[1:]
    pretrained = weights == DEFAULT
    if width != 1.0 or depth is not None:
        if pretrained:
            raise ValueError("weights=DEFAULT are of the network as it is: leave width and depth")
        model = _of_size(name, settings, width, depth)
        return _fitted(model, name, weights, norm, freeze)
    try:
        model = _timm.create_model(name, pretrained=pretrained, **settings)
    except Exception as error:
        if not pretrained:
            raise
        place = str(known.hf_hub_id or known.url) if known is not None else "any"
        raise ValueError(_not_there("timm", name, place)) from error
    return _fitted(model, name, None if pretrained else weights, norm, freeze)


def _of_size(name: str, settings: dict[str, Any], width: float, depth: int | None) -> nn.Module:
    """A drawn network of timm of another size than the library's."""
    if (family := _family(name)) is None:
        raise ValueError(
            f"{name} has no width and depth; timm's vision transformers, ConvNeXts and ResNets have"
        )
    with torch.device("meta"):
        usual = _timm.create_model(name, **settings)
    model = _timm.create_model(name, **settings, **family.settings(usual, width, depth))
    family.finish(model, usual, width)
    return model


def torchvision(
    image: ImageShape,
    classes: int,
    *,
    name: str,
    weights: str | None,
    norm: NormOption,
    freeze: str | None,
) -> nn.Module:
    """A network of torchvision that classifies; parameters as of :func:`timm`.

    Raises
    ------
    ValueError
        If there is no such network, or the weights are of another.
    """
    models = _torchvision.models
    _require_name("torchvision", name, models.list_models(module=models))
    aside = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes, **aside)
    _take_channels(model, image[0])
    if weights == DEFAULT:
        known = models.get_model_weights(name).DEFAULT
        try:
            found = known.get_state_dict(check_hash=True)
        except Exception as error:
            raise ValueError(_not_there("torchvision", name, known.url)) from error
        load_stored(model, found, known.name)
        weights = None
    return _fitted(model, name, weights, norm, freeze)


def _require_name(library: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise ValueError(f"{library} has no {name}; {nearest(name, known)}")


def _not_there(library: str, name: str, place: str) -> str:
    return (
        f"weights=DEFAULT: {library} has no pretrained {name} in its cache, and cannot fetch "
        f"{place}; name a file of weights instead"
    )


def _fitted(
    model: nn.Module, name: str, weights: str | None, norm: NormOption, freeze: str | None
) -> nn.Module:
    if weights is not None:
        load_stored(model, stored(weights), weights)
    if norm == "group":
        _replace_norms(model)
    elif any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        _warn_of_norms(name)
    if freeze is not None:
        freeze_found(model, freeze)
    return model


@cache
def _warn_of_norms(name: str) -> None:
    logger.warning(
        "model: %s has BatchNorm, whose statistics average badly where clients differ; "
        "model.norm=group replaces it",
        name,
    )


def _take_channels(model: nn.Module, channels: int) -> None:
    """Give a network a first convolution for images of so many channels."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels != channels:
                parent, _, leaf = name.rpartition(".")
                first = convolution_like(module, channels, module.out_channels)
                setattr(model.get_submodule(parent), leaf, first)
            return


def _replace_norms(model: nn.Module) -> None:
    """GroupNorm of up to 8 groups in the place of each BatchNorm, with its scales and shifts."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            group = norm_layer("group", module.num_features)
            assert isinstance(group, nn.GroupNorm)
            group.eps = module.eps
            if module.affine:
                group.load_state_dict({"weight": module.weight, "bias": module.bias})
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, group)
