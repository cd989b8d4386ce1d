"""ViTs of timm by name, without their classifier, for any image size, with weights from timm or from a file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

PATCH = 16
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
    extra: dict[str, Any] = {"pretrained": pretrained is True}
    if isinstance(pretrained, (str, Path)) and str(pretrained):
        if not Path(pretrained).is_file():
            raise FileNotFoundError(f"{where}: the file of pretrained weights {pretrained} does not exist.")
        extra = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(pretrained)}}
    elif not isinstance(pretrained, bool):
        raise ValueError(f"{where}: pretrained must be true, false or a file of weights, got {pretrained!r}.")
    vit = _create(str(name), c1, where, extra)
    if not isinstance(vit, (VisionTransformer, Eva)) or not hasattr(vit.patch_embed, "dynamic_feat_size"):
        raise ValueError(f"{where}: {name!r} is a {type(vit).__name__}, not a plain ViT; try vit_small_patch16_224.")
    vit.prune_intermediate_layers(len(vit.blocks), prune_norm=False, prune_head=True)
    return vit


def _create(name: str, c1: int, where: str, extra: dict[str, Any]) -> Any:
    """Create the model and load its weights by timm's own loader."""
    overlay = extra.get("pretrained_cfg_overlay")
    try:
        return timm.create_model(
            name, in_chans=c1, num_classes=0, patch_size=PATCH, dynamic_img_size=True, scriptable=False, **extra
        )
    except TypeError as error:
        raise ValueError(f"{where}: {name!r} cannot be built for any image size: {error}.") from error
    except Exception as error:
        if overlay:
            raise ValueError(f"{where}: the weights in {overlay['file']} do not fit {name}: {_short(error)}") from error
        if extra["pretrained"]:
            raise ConnectionError(
                f"{where}: timm's weights of {name} cannot be fetched ({_short(error)}). Without a network, give a "
                "file: {pretrained: /path/to/weights.safetensors}."
            ) from error
        raise


def _short(error: Exception, limit: int = 600) -> str:
    """Return the message of an error on one line, cut where it lists too many keys."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else f"{text[:limit]} ..."


def timm_classes() -> list[type]:
    """Return the classes that ViT checkpoints hold, which loading with `weights_only` must be told."""
    import timm.layers
    from timm.models import eva, vision_transformer

    modules = (timm.layers, eva, vision_transformer)
    found = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    return [kind for kind in found if issubclass(kind, torch.nn.Module)]
