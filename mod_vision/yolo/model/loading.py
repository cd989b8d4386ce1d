"""Loading a model: a checkpoint, or an untrained one from a YAML; and what a checkpoint remembers."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ultralytics import YOLO
from ultralytics.engine.model import Model
from ultralytics.nn import tasks
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

from mod_vision.errors import one_line
from mod_vision.resources import find_file
from mod_vision.yolo.model.checkpoint import open_checkpoint
from mod_vision.yolo.model.rows import check_model_yaml, forget_pretrained
from mod_vision.yolo.model.size_limits import check_parameters
from mod_vision.yolo.model.trust import YAMLS, restricted


def load_model(path_or_model: str | Path | Model) -> YOLO:
    """Load a checkpoint or build an untrained model from a YAML; never downloads, a `YOLO` object passes through.

    Args:
        path_or_model: A .pt file or a YAML file, or the bare name of one that ships with this package, such as
            'yolo26n-mod.yaml' and 'yolo26n-mod-hybrid-seg.pt', or a `YOLO`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is neither .pt nor YAML, or no whole checkpoint of weights alone, see `open_checkpoint`.
    """
    if isinstance(path_or_model, Model):
        return path_or_model
    path = Path(path_or_model)
    if path.suffix.lower() not in (".pt", *YAMLS):
        raise ValueError(f"model {path} is neither a checkpoint (.pt) nor a model YAML.")
    if path.suffix.lower() != ".pt":
        return _build(path)
    file = find_file(path)
    if file is None:  # Ultralytics would try to download it
        hint = f" Download it first: yolo predict model={path.name}" if path.name in GITHUB_ASSETS_NAMES else ""
        raise FileNotFoundError(f"checkpoint {path} does not exist.{hint}")
    return open_checkpoint(file)


class Trained(NamedTuple):
    """What a checkpoint remembers of its training: the image size in pixels, 640 if it does not, and the data set."""

    imgsz: int
    data: str | None


def trained_with(model: YOLO) -> Trained:
    """Return what a model was trained with, as Ultralytics takes it up again for `val` and `predict`."""
    imgsz, data = model.overrides.get("imgsz"), model.overrides.get("data")
    sizes = [size for size in (imgsz if isinstance(imgsz, (list, tuple)) else [imgsz]) if isinstance(size, int)]
    return Trained(max(sizes, default=0) or 640, str(data) if data else None)


def _build(path: Path) -> YOLO:
    """Build an untrained model; errors of ours name the row, others at least the file."""
    try:
        d = tasks.yaml_model_load(path)
        check_model_yaml(d)
        forget_pretrained(d)
        with restricted():
            check_parameters(d)  # before it takes the memory
            return YOLO(str(path))
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:
        raise ValueError(f"model {path} cannot be built: {one_line(error)}") from error


def load_export(path: Path) -> YOLO:
    """Return a `YOLO` object of an exported model; it is opened when it predicts."""
    return YOLO(str(path))
