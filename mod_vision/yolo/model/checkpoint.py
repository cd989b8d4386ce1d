"""Opening checkpoints: whole files only, and weights only, since a pickle can run any code of whoever wrote it."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.nn import tasks

from mod_vision.env import AUTOLOAD, TRUST
from mod_vision.errors import one_line
from mod_vision.yolo.model.archive import constructed, damage
from mod_vision.yolo.model.offline import offline
from mod_vision.yolo.model.safe_classes import allow_vit_classes
from mod_vision.yolo.model.trust import restricted, trusted

VIT_MODULES = ("timm.", "mod_vision.nn.vit.", "mod_vision.nn.pyramid.")


def open_checkpoint(file: Path) -> YOLO:
    """Load a checkpoint.

    Args:
        file: A .pt file that exists.

    Raises:
        ValueError: If it is damaged, holds no model or a part of one, or anything but weights and known classes.
    """
    _check_whole(file)
    if not trusted():
        _check_states(file)
    if any(name.startswith(VIT_MODULES) for name in _unknown_names(file)):
        allow_vit_classes()
    try:
        with restricted(), offline(not trusted()):
            yolo = YOLO(str(file))
    except Exception as error:
        if not getattr(tasks, "mod_vision_registered", False):
            raise ValueError(
                f"checkpoint {file} does not load: the routed layers are not registered, since {AUTOLOAD}=0; unset it, "
                "or call mod_vision.plugin.register.register() first."
            ) from error
        if not trusted() and (refused := _unknown_names(file)):
            raise ValueError(
                f"checkpoint {file} holds {', '.join(refused[:3])}, which are no weights and could run any code, so it "
                f"was not loaded. If you trust whoever made it, set the environment variable {TRUST}=1."
            ) from error
        if _holds_no_model(file):
            raise ValueError(
                f"checkpoint {file} holds no model of Ultralytics, such as `yolo train` and `model.save()` write; "
                "weights alone (a state dict) do not tell what they belong to."
            ) from error
        raise ValueError(f"checkpoint {file} does not load: {one_line(error)}") from error
    if isinstance(names := getattr(yolo.model, "names", None), (list, tuple)):  # of open vocabularies, or set by hand
        yolo.model.names = dict(enumerate(names))
    if missing := _missing(yolo.model):
        raise ValueError(f"checkpoint {file} holds no whole model: {missing}; take the one it was made from.")
    return yolo


def _holds_no_model(file: Path) -> bool:
    """Return whether a file that Ultralytics did not take loads, but without a model in it."""
    try:
        with restricted(), offline(not trusted()):
            content, _ = tasks.torch_safe_load(file)
    except AttributeError as error:
        return error.name == "model"  # what Ultralytics asks of anything that is no dictionary
    except Exception:  # it does not load for another reason, which is told
        return False
    return not any(isinstance(content.get(key), nn.Module) for key in ("ema", "model"))


def _missing(net: Any) -> str | None:
    """Return what a loaded model lacks that all else relies on, None if it is whole."""
    d, names = getattr(net, "yaml", None), getattr(net, "names", None)
    if not isinstance(d, dict) or not all(isinstance(d.get(key), list) for key in ("backbone", "head")):
        return "its `yaml`, the rows that it was built from, is missing"
    layers, rows = len(getattr(net, "model", ())), len(d["backbone"]) + len(d["head"])
    if layers != rows:
        return f"it has {layers} layers, and its `yaml` {rows} rows"
    if strange := next((name for name, _ in net.named_modules() if not re.fullmatch(r"[\w.-]*", name)), None):
        return f"{strange!r:.60} is no name of a layer"
    classes = getattr(net.model[-1], "nc", d.get("nc"))
    if not isinstance(classes, int):
        return f"its `yaml` must tell the number of classes as nc, got {classes!r:.60}"
    if not isinstance(names, dict) or not all(isinstance(names.get(i), str) for i in range(classes)):
        return f"its `names` must be a text for each of {classes} classes, got {names!r:.60}"
    return None


def _check_whole(file: Path) -> None:
    """Refuse what is no whole file of torch.

    Raises:
        ValueError: If the file is empty, cut off, damaged or no checkpoint.
    """
    broken = damage(file)
    if broken and not trusted():
        message = f"checkpoint {file} is damaged or no checkpoint ({broken}); copy or download it again."
        if _is_pickle(file):
            message += (
                f" One in the format before torch 1.6 loads with the environment variable {TRUST}=1, which lets it "
            )
            message += "run any code: set it only if you trust whoever made it, load it once and save it anew."
        raise ValueError(message)


def _check_states(file: Path) -> None:
    """Refuse what calls the constructor of a model, which can use the network, instead of holding a state.

    Raises:
        ValueError: If there is one.
    """
    try:
        refused = constructed(file)
    except pickle.UnpicklingError as error:
        raise ValueError(f"checkpoint {file} does not load: {error}.") from error
    if refused:
        raise ValueError(
            f"checkpoint {file} calls {', '.join(refused[:3])} when it is loaded, which no saved model does and which "
            f"could use the network, so it was not loaded. If you trust whoever made it, set the environment variable "
            f"{TRUST}=1."
        )


def _is_pickle(file: Path) -> bool:
    """Return whether a file starts as checkpoints before torch 1.6 do."""
    with file.open("rb") as start:
        return start.read(1) == b"\x80"


def _unknown_names(file: Path) -> list[str]:
    """Return the classes and functions in a checkpoint that loading weights only does not take."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # a zip archive without a pickle, or with a strange one; loading it will tell
        return []
