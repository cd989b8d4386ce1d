"""`key=value` words as arguments of a function, in the manner of `yolo`."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import yaml

EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?e[-+]?\d+", re.IGNORECASE)  # a number such as 1e-3, which YAML takes for text
KEYS = {  # what each key is, the same for all verbs but for VERB.KEY
    "model": "checkpoint (.pt) or model YAML",
    "heatmap.model": "checkpoint, model YAML or ONNX export",
    "models": "several checkpoints, joined by commas, to compare",
    "data": "data YAML; by default the one that the model was trained on",
    "export.data": "images to check, and to calibrate int8 on; by default embedded photos",
    "source": "image, video, folder, pattern, list (.txt), URL, webcam number or stream",
    "predict_many.source": "folder, file, list (.txt), or object store such as s3://bucket/folder",
    "capacity": "share of tokens that pass the heavy blocks, in (0, 1]; 1 is the dense baseline",
    "fit.capacity": "capacity in (0, 1); 0 is the model's own, or 0.5 for one that runs dense",
    "val.capacity": "capacity in (0, 1]; several, joined by commas, sweep; by default the model's own",
    "report.capacity": "stops of the page's slider, joined by commas",
    "bench.capacity": "capacities to time, joined by commas",
    "tune.capacity": "capacities to choose from, joined by commas",
    "export.capacity": "capacity that the export is fixed at; by default the model's own",
    "predict_many.capacity": "capacity in (0, 1]; by default the model's own",
    "imgsz": "longer side of the input in pixels; 0 is the size that the model was trained at, or 640",
    "heatmap.out": "folder of the pictures; none that is there is overwritten",
    "bench.imgsz": "image size in pixels",
    "export.imgsz": "side of the images in pixels, or height,width; 0 is what the model was trained at, or 640",
    "tune.imgsz": "image size in pixels",
    "batch": "images at a time",
    "device": "cpu, 0, mps, ... as in yolo; by default a GPU if there is one",
    "threads": "CPU threads",
    "out": "where results go; a name that is taken gets a number: val2, val3, ...",
    "convert.out": "the checkpoint to write; by default MODEL-mod.pt",
    "fit.out": "the checkpoint to write; by default MODEL-fit.pt, or MODEL-threshold.pt",
    "bench.out": "folder for figures and picture; by default none are written",
    "tune.out": "folder of the sweep; a second run with the same one goes on",
    "predict_many.out": "folder of the results; a second run with the same one goes on",
    "split": "train, val or test",
    "annotations": "COCO JSON with the ground truth; wins over `annotations:` of the data YAML",
    "engine": "pycocotools, or faster for faster-coco-eval",
    "view": "mask (what was computed keeps its colours), overlay, side or page",
    "boxes": "True draws the detections on top",
    "conf": "lowest confidence of a detection, in [0, 1]",
    "frames": "most frames of each video or stream",
    "images": "number of images to show or to check",
    "evaluate": "False leaves out accuracy and cost, which takes most of the time",
    "host": "address to listen on",
    "port": "port to listen on",
    "budget": "time that an image may take, such as 30ms",
    "stream.budget": "time that a frame may take, such as 33ms; what does not fit waits for the next frames",
    "speedup": "how many times as fast as the dense model it shall be, such as 2",
    "max_loss": "AP that may be lost, such as 0.3; by default 0.5 if neither budget nor speedup is given",
    "labels": "False learns from the dense model's own confident detections",
    "convert.router": "routers to train and choose from, joined by commas: look, stem, scout",
    "steps": "batches that each router is trained on",
    "force": "True writes the routed model though another is the better buy",
    "router": "name of the router: conv, linear, norm, contrast, random, grid",
    "zone": "GeoJSON, LabelMe file or mask picture, or points [[x, y], ...]; several files, joined by commas",
    "size": "width and height of the pictures, such as 1280x720: needed for points in pixels; the cost is told for it",
    "convert.zone": "GeoJSON, LabelMe file or mask picture, or points [[x, y], ...]; by default the whole picture",
    "convert.size": "width and height of the pictures in pixels, for a zone in pixels",
    "refresh": "frames after which each part of the picture is computed again at the latest",
    "window": "side of a window in px, of a dense model; a routed one keeps its own",
    "stream.out": "the checkpoint to write; by default MODEL-stream.pt",
    "zone.out": "the checkpoint to write; by default MODEL-zone.pt",
    "thresholds": "True makes a routed model input-adaptive instead of fitting routers",
    "format": "as in yolo export: onnx, openvino, torchscript, engine, ...",
    "dynamic": "True lets an export take any size and batch; of models on windows, any batch of one size",
    "k": "numbers of windows, joined by commas, or all, for a folder of graphs; by default one graph of one number",
    "quantize": "as in yolo export: 16 or 8 bits",
    "baselines": "dense models on the same bench, joined by commas",
    "by": "model, backbone, layer, step (of a training) or profile",
    "repeats": "timed rounds; in each, all models run in turn",
    "backend": "eager, compile, cudagraph, onnx, openvino, torchscript or tensorrt",
    "dtype": "float32, bfloat16 or float16; exports have their own",
    "epochs": "epochs of each training",
    "iterations": "trials, the dense baseline among them",
    "cfg": "YAML with more training arguments of yolo",
    "tune.router": "routers to choose from, joined by commas",
    "workers": "processes that predict",
    "stages": "rows to route, joined by + (6+8), several by commas; all",
}


def as_list(value: Any) -> list[Any]:
    """Return the values of a key that takes several, joined by commas."""
    value = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    return list(value) if isinstance(value, (list, tuple)) else [] if value in (None, "") else [value]


def as_value(text: Any, key: str) -> Any:
    """Return a number, list, ... of a text, and what is no text as it is.

    Raises:
        ValueError: If the text is no YAML.
    """
    try:
        value = yaml.safe_load(text) if isinstance(text, str) else text
    except yaml.YAMLError:
        raise ValueError(f"{key}={text}: brackets or quotes are not closed.") from None
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def parse(name: str, function: Callable[..., Any], words: list[str]) -> dict[str, Any]:
    """Turn `key=value` words into the arguments of a function, such as that of a verb; `name` is for messages.

    Raises:
        ValueError: If a word is no key=value, a key is unknown, a value is of another type, or a needed key is missing.
    """
    parameters = keys_of(function)
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not of the form key=value.")
        if key not in parameters:
            known = ", ".join(parameters) or "none"
            raise ValueError(f"{name} has no key {key!r}{similar(key, parameters)}; it has {known}.")
        arguments[key] = _checked(key, text, parameters[key])
    missing = [k for k, p in parameters.items() if p.default is inspect.Parameter.empty and k not in arguments]
    if missing:
        raise ValueError(f"{name} needs {' '.join(f'{key}=...' for key in missing)}")
    for group, parameter in inspect.signature(function).parameters.items():
        if is_dataclass(default := parameter.default):
            own = {field.name: arguments.pop(field.name) for field in fields(default) if field.name in arguments}
            arguments[group] = replace(default, **own)  # type: ignore[type-var]
    return arguments


def keys_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the keys of a function: its parameters, and the fields of settings in their place."""
    keys: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if is_dataclass(default := parameter.default):
            for field in fields(default):
                own = {"default": getattr(default, field.name), "annotation": field.type}
                keys[field.name] = inspect.Parameter(field.name, parameter.kind, **own)
        else:
            keys[name] = parameter
    return keys


def similar(word: str, known: Iterable[str]) -> str:
    """Return `, did you mean ...?` with the known word that looks most like one, or nothing."""
    found = difflib.get_close_matches(word, list(known), 1)
    return f", did you mean {found[0]!r}?" if found else ""


def describe(name: str, function: Callable[..., Any]) -> str:
    """Return the help of a verb or a script: what it does, a line for each key with its default, and an example."""
    said = inspect.cleandoc(function.__doc__ or "").splitlines()
    example = next((line for line in said if line.startswith("Example: ")), "")
    about = [line for line in said[1:] if line and line != example]
    lines = [said[0], *about, f"usage: {name} key=value ..."]
    for key, parameter in keys_of(function).items():
        needed = parameter.default is inspect.Parameter.empty
        shown = f"{key}=" if needed else f"{key}={_as_text(parameter.default)}"
        text = KEYS.get(f"{function.__name__}.{key}") or KEYS.get(key, "")
        lines.append(f"  {shown:<34} {text}{' (needed)' if needed else ''}")
    return "\n".join([*lines, *([example] if example else [])])


def _as_text(value: Any) -> str:
    """Return a default as a user writes it; what is found out at run time is left open."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def _checked(key: str, text: str, parameter: inspect.Parameter) -> Any:
    """Return the value of a key, which must be of the type that it is annotated with."""
    wanted, lowest = str(parameter.annotation), 0 if parameter.default == 0 else 1
    if wanted.startswith("str"):
        return text
    value = as_value(text, key)
    is_bool = isinstance(value, bool)
    if wanted == "int" and (is_bool or not isinstance(value, int) or value < lowest):
        raise ValueError(f"{key}={text}: {key} must be a whole number of at least {lowest}.")
    if wanted == "float" and (is_bool or not isinstance(value, (int, float)) or not math.isfinite(value)):
        raise ValueError(f"{key}={text}: {key} must be a number.")
    if wanted == "bool" and not is_bool:
        raise ValueError(f"{key}={text}: {key} must be True or False.")
    return value
