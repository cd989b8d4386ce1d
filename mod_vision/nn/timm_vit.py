"""ViTs of timm by name, without their classifier, for any image size, with weights from timm or from a file."""

from __future__ import annotations

import difflib
import pickle
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from mod_vision.errors import one_line

PATCH = 16
SHOWN_KEYS = 5
MODULES = ("vision_transformer", "deit", "eva")


def build_vit(name: Any, pretrained: Any, c1: int, where: str) -> Any:
    """Build a ViT of timm with patches of 16 x 16 pixels.

    Args:
        name: Its name in timm, with or without a tag of pretrained weights.
        pretrained: False, True to fetch timm's weights, or a file of weights (safetensors or a state dict).
        c1: Channels of the image.
        where: The place it is named, for errors.

    Raises:
        ValueError: If timm has no such ViT, or the weights do not fit.
        FileNotFoundError: If the file of weights does not exist.
        ConnectionError: If the weights cannot be fetched.
    """
    known = [known for module in MODULES for known in timm.list_models(module=module)]
    if str(name).partition(".")[0] not in known:
        similar = difflib.get_close_matches(str(name), known, n=3) or ["vit_small_patch16_224"]
        raise ValueError(f"{where}: {name!r} is no ViT of timm; similar names are {', '.join(similar)}.")
    if not isinstance(pretrained, (bool, str, Path)) or pretrained == "":
        raise ValueError(f"{where}: pretrained must be true, false or a file of weights, got {pretrained!r}.")
    if not isinstance(pretrained, bool) and not Path(pretrained).is_file():
        raise FileNotFoundError(f"{where}: the file of pretrained weights {pretrained} does not exist.")
    vit = _create(str(name), pretrained is True, c1, where)
    if not isinstance(vit, (VisionTransformer, Eva)) or not hasattr(vit.patch_embed, "dynamic_feat_size"):
        raise ValueError(f"{where}: {name!r} is a {type(vit).__name__}, not a plain ViT; try vit_small_patch16_224.")
    if not isinstance(pretrained, bool):
        _load(vit, str(name), Path(pretrained), where)
    vit.prune_intermediate_layers(len(vit.blocks), prune_norm=False, prune_head=True)
    return vit


def _create(name: str, fetch: bool, c1: int, where: str) -> Any:
    """Create the model, with timm's weights if they are to be fetched."""
    try:
        return timm.create_model(
            name, pretrained=fetch, in_chans=c1, num_classes=0, patch_size=PATCH, dynamic_img_size=True
        )
    except TypeError as error:
        raise ValueError(f"{where}: {name!r} cannot be built for any image size: {error}.") from error
    except Exception as error:
        if not fetch:
            raise
        raise ConnectionError(
            f"{where}: timm's weights of {name} cannot be fetched ({one_line(error)}). Without a network, give a file: "
            "{pretrained: /path/to/weights.safetensors}."
        ) from error


def _load(vit: Any, name: str, file: Path, where: str) -> None:
    """Load weights from a file by timm's own functions, which know the formats and resample embeddings."""
    module = sys.modules[timm.model_entrypoint(name.partition(".")[0]).__module__]
    fit = getattr(module, "checkpoint_filter_fn", checkpoint_filter_fn)
    try:
        result = vit.load_state_dict(fit(load_state_dict(str(file), weights_only=True), vit), strict=False)
    except (RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{where}: the weights in {file} do not fit {name}: {one_line(error)}") from error
    unexpected = [key for key in result.unexpected_keys if not key.startswith(("head.", "head_dist."))]
    if result.missing_keys or unexpected:
        raise ValueError(
            f"{where}: the weights in {file} do not fit {name}: missing keys {_few(result.missing_keys)}; unexpected "
            f"keys {_few(unexpected)}."
        )


def _few(keys: list[str]) -> str:
    """List the first keys."""
    rest = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return ", ".join(keys[:SHOWN_KEYS]) + rest if keys else "none"


def timm_classes() -> list[type]:
    """Return the classes that ViT checkpoints hold, which loading with `weights_only` must be told."""
    import timm.layers
    from timm.models import eva, vision_transformer

    modules = (timm.layers, eva, vision_transformer)
    found = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    return [timm.layers.Format, *(kind for kind in found if issubclass(kind, torch.nn.Module))]
