"""Models from our YAMLs, as they are or changed, what a training leaves behind, and what a command says."""

from __future__ import annotations

import copy
import csv
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel, SegmentationModel, yaml_model_load

from mod_vision.cli.main import main
from mod_vision.resources import find_shipped
from mod_vision.routing import routed_layers
from mod_vision.yolo.model.loading import load_model


@functools.cache
def _built(name: str) -> nn.Module:
    kind = SegmentationModel if "seg" in name else DetectionModel
    model = kind(name, nc=3, verbose=False)
    model.args = get_cfg()
    return model


def build(name: str) -> nn.Module:
    """Return a copy of a model that is built once."""
    return copy.deepcopy(_built(name))


def shipped(name: str = "yolo26-mod-hybrid.yaml") -> dict:
    return yaml.safe_load(find_shipped(name).read_text())


def build_yaml(tmp_path: Path, d: dict, name: str = "yolo26n-x.yaml") -> nn.Module:
    """Write a model YAML under a name with a scale and build it."""
    (tmp_path / name).write_text(yaml.safe_dump(d))
    return DetectionModel(str(tmp_path / name), verbose=False)


def write_mod_yaml(
    folder: Path, mod: dict, name: str = "yolo26n-mod-hybrid-x.yaml", base: str = "yolo26-mod-hybrid.yaml"
) -> Path:
    """Write a shipped YAML with keys of its `mod:` section changed, under a name with a scale."""
    d = shipped(base)
    d["mod"] |= mod
    (folder / name).write_text(yaml.safe_dump(d))
    return folder / name


def layers(model: nn.Module) -> list:
    return [layer for _, layer in routed_layers(model)]


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return [{k.strip(): v.strip() for k, v in row.items()} for row in csv.DictReader(lines)]


def make_batch(images: int = 2, size: int = 64, overlap: bool = True) -> dict:
    """One object in the first image, two in the last, as Ultralytics' data loader gives them."""
    boxes = torch.tensor([[0.25, 0.25, 0.3, 0.3], [0.5, 0.5, 0.4, 0.8], [0.8, 0.2, 0.2, 0.2]])
    idx = torch.tensor([0.0, images - 1.0, images - 1.0])
    side = size // 4
    masks = torch.zeros(3, side, side)
    for mask, (cx, cy, w, h) in zip(masks, (boxes * side).round().int().tolist(), strict=True):
        mask[cy - h // 2 : cy + h // 2, cx - w // 2 : cx + w // 2] = 1
    joined = torch.zeros(images, side, side)
    number = [0] * images
    for image, mask in zip(idx.int().tolist(), masks, strict=True):
        number[image] += 1
        joined[image][mask > 0] = number[image]
    return {
        "img": torch.rand(images, 3, size, size),
        "batch_idx": idx,
        "cls": torch.tensor([[0.0], [1.0], [2.0]]),
        "bboxes": boxes,
        "masks": joined if overlap else masks,
        "sem_masks": torch.zeros(images, side, side),
    }


def make_box_batch(images: int = 2, size: int = 64) -> dict:
    """The same without masks, as for detection."""
    batch = make_batch(images, size)
    del batch["masks"], batch["sem_masks"]
    return batch


def routing_order(scores: torch.Tensor) -> list[int]:
    """Tokens in the order that their scores (N,) give them: compared to about three digits, equal ones by position."""
    steps = (scores.sign() * scores.abs().log1p() * 512).round().tolist()
    return sorted(range(len(steps)), key=lambda i: -steps[i])


def attempt(action: Callable[[], Any]) -> tuple[Any, str | None]:
    """Return what an action gives, or the message of the ValueError that refuses it; other errors fail the test."""
    try:
        return action(), None
    except ValueError as error:
        return None, str(error)


def error_text(capsys: Any, *words: str) -> str:
    """What a command says that fails, in no more than three lines."""
    assert main(list(words)) == 1
    text = capsys.readouterr().err
    assert text.count("\n") <= 3
    assert "Traceback" not in text
    return text


def error_line(capsys: Any, *words: str) -> str:
    """The error of a command that fails, its last line whatever it said before."""
    capsys.readouterr()
    assert main(list(words)) == 1
    text = capsys.readouterr().err
    last = text.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in text
    return last


def files_in(folder: Path) -> set[str]:
    """Names of all files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def randomise(module: nn.Module) -> nn.Module:
    """Give weights and batch statistics values that matter, as after training."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if name.endswith(("running_var", "bn.weight", "gamma")):
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif tensor.is_floating_point():
            nn.init.normal_(tensor, std=0.5 if tensor.ndim < 2 else tensor[0].numel() ** -0.5)
    return module


def random_parameters(module: nn.Module) -> nn.Module:
    """Give every parameter, also those that start at zero, a value that matters."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


class PlusOne(nn.Module):
    """f(x) = x + 1, the residual block whose effect is easiest to see."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


class HostWaits(TorchDispatchMode):
    """Counts operations whose result the host waits for on a GPU: values, and shapes that depend on values."""

    OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "item")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indexed = args[1] if func is torch.ops.aten.index.Tensor else ()
        masks = [index for index in indexed if index is not None and index.dtype == torch.bool]
        if masks or func.overloadpacket.__name__.endswith(self.OPERATIONS):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def run_python(code: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """Run code in a fresh Python, away from the checkout and without network access by Ultralytics."""
    clean = {k: v for k, v in os.environ.items() if k not in ("MOD_VISION_AUTOLOAD", "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**clean, "YOLO_OFFLINE": "true", "YOLO_CONFIG_DIR": str(cwd), "YOLO_AUTOINSTALL": "false", **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def write_windows_yaml(folder: Path, nc: int = 80, **windows: Any) -> Path:
    d = yaml_model_load("yolo26n.yaml")
    d = {key: value for key, value in d.items() if key not in ("yaml_file", "scale")}
    file = folder / "yolo26n-win.yaml"
    file.write_text(yaml.safe_dump(d | {"nc": nc, "mod": {"windows": windows}}))
    return file


def write_vit_yaml(folder: Path, window: int | None) -> Path:
    """Write a YAML of a ViT backbone whose last four blocks are routed, in windows of so many patches."""
    d = shipped("yolo26-mod-vit-t.yaml")
    d["backbone"][0][3] = [128, "vit_tiny_patch16_224", {"blocks": [[8, 11]], "window": window}]
    (folder / "vit.yaml").write_text(yaml.safe_dump(d))
    return folder / "vit.yaml"


def with_random_routers(name: str | Path) -> YOLO:
    """Load a model, its routers with random weights."""
    torch.manual_seed(0)
    yolo = load_model(name)
    for layer in layers(yolo.model):
        nn.init.normal_(layer.router.proj.weight)
    return yolo
