"""Converting a trained dense model into a routed one."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import nn

from mod_vision.conversion.sensitivity import REPEATS, Trial, table, try_layers
from mod_vision.eval.cost.flops import executed_gflops
from mod_vision.eval.cost.latency import as_deployed, paired_latency
from mod_vision.resources import resource_dir
from mod_vision.routing import check_capacity
from mod_vision.yolo.export.exporter import input_tensors
from mod_vision.yolo.model.graph import attention_rows, copy_model, put_routed, routed_layer, yaml_row
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.settings import check_options
from mod_vision.yolo.run.device import round_imgsz
from mod_vision.yolo.run.images import some_images

IMAGES = 8


def convert(
    model: Any,
    capacity: float = 0.5,
    blocks: Any = "auto",
    router: str = "conv",
    images: Any = None,
    imgsz: int = 640,
) -> Any:
    """Turn a trained dense model into one that routes its attention and keeps every weight.

    Only routers are added. They are untrained: train on with `yolo train model=...` on your data. `set_capacity(model,
    1.0)` gives the dense outputs back exactly. The model that is given stays as it is.

    Args:
        model: A `YOLO` object or a .pt file of YOLO11, 12, 26 or RT-DETR, for any task; others have no attention.
        capacity: Share of tokens that pass the routed layers, in (0, 1].
        blocks: `auto`, `all`, or a list of rows of the model YAML. `auto` routes each layer alone, measures what that
            saves and how much the maps that the head reads change, prints the table, and routes what saves at least 1 %
            of the network's time and shifts the maps by at most 30 %.
        router: Name of a router.
        images: Where a few images to measure on come from: a data YAML, a folder, a file, a pattern or a list; by
            default the embedded photos, which are not your data.
        imgsz: Image size in pixels.

    Returns:
        A new `YOLO` object.

    Raises:
        FileNotFoundError: If model or images do not exist.
        ValueError: If an argument is not valid, the model is exported or fused, or nothing of it can be routed.
    """
    check_options({"capacity": check_capacity(capacity), "router": router}, "convert")
    new = copy_model(load_model(model))
    net = new.model
    rows = _rows(blocks, net)
    x = _images(images, round_imgsz(imgsz))
    options = {row: {"capacity": capacity, "router": router} for row in rows}
    layers, trials = _build(net, options, strict=blocks not in ("auto", "all"))
    if blocks == "auto":
        trials += try_layers(net, layers, options, x)
        print(table(trials))
        layers = {trial.row: layers[trial.row] for trial in trials if trial.verdict == "routed"}
    if not layers:
        raise ValueError(
            f"no layer of this model is worth routing at {imgsz} px: {_reasons(trials)}. Name rows with blocks=..., "
            "or use a larger image or model."
        )
    dense = deepcopy(net)
    net.yaml["mod"] = net.yaml.get("mod") or {"capacity": capacity, "router": router}  # rows have options of their own
    for row, layer in layers.items():
        put_routed(net, row, layer, options[row])
    print(_summary(dense, net, x[:1], list(layers)))
    return new


def _rows(blocks: Any, net: Any) -> list[int]:
    """Return the rows to route, or to choose from."""
    known = attention_rows(net)
    if not known:
        raise ValueError(
            "this model has nothing to route, since convert routes attention: YOLO11 and YOLO26 have C2PSA, YOLO12 has "
            "A2C2f, RT-DETR has AIFI, and YOLOv8 and YOLOv9 have none."
        )
    if isinstance(blocks, str) and blocks in ("auto", "all"):
        return known
    rows = list(blocks) if isinstance(blocks, Sequence) and not isinstance(blocks, str) else [blocks]
    if not rows or any(isinstance(row, (bool, dict, list)) or row not in known for row in rows):
        names = ", ".join(f"{row} ({yaml_row(net, row)[2]})" for row in known)
        raise ValueError(f"blocks must be auto, all, or rows that have a routed form, {names}; got {blocks!r}.")
    return sorted(set(rows))


def _images(source: Any, imgsz: int) -> torch.Tensor:
    """Return a few images (B, 3, imgsz, imgsz)."""
    if source is None:
        print("measured on the embedded photos; name your data for a better choice")
        source = resource_dir("assets") / "open" / "images" / "train"
    return torch.cat(input_tensors(some_images(source, IMAGES), imgsz))


def _build(net: Any, options: dict[int, Any], strict: bool) -> tuple[dict[int, nn.Module], list[Trial]]:
    """Return the routed layers by row, and the rows that cannot be routed, which is an error if `strict`."""
    layers, refused = {}, []
    for row in options:
        try:
            layers[row] = routed_layer(net, row, options[row])
        except ValueError as error:
            if strict:
                raise
            refused.append(Trial(row, yaml_row(net, row)[2], reason=str(error).partition(": ")[2].rstrip(".")))
    return layers, refused


def _reasons(trials: list[Trial]) -> str:
    """Return the verdicts, each with the rows that it holds for."""
    rows: dict[str, list[str]] = {}
    for trial in sorted(trials):
        rows.setdefault(trial.verdict, []).append(str(trial.row))
    return "; ".join(f"row {', '.join(which)} {verdict}" for verdict, which in rows.items())


def _summary(dense: Any, routed: Any, image: torch.Tensor, rows: list[int]) -> str:
    """Return what the conversion saves."""
    nets = {name: as_deployed(deepcopy(net)) for name, net in (("dense", dense), ("routed", routed))}
    image = image.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        times = paired_latency({name: partial(net, image) for name, net in nets.items()}, REPEATS)
    before, after = (executed_gflops(net, image.shape[2]) for net in nets.values())
    return (
        f"routed rows {', '.join(map(str, rows))}\n"
        f"GFLOPs {before:.2f} -> {after:.2f}, {times['dense']} -> {times['routed']} "
        f"({times['dense'].median / times['routed'].median:.2f}x, {torch.get_num_threads()} threads, "
        f"{image.shape[2]} px, median and quartiles)"
    )
