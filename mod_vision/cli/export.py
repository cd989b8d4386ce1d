"""`mod-vision export`: one graph, or for models on windows a folder of several."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mod_vision.cli.arguments import THREADS, opened, sides_of
from mod_vision.resources import PHOTOS
from mod_vision.run_settings import ExportSettings


def export(
    model: str,
    format: str = "onnx",
    capacity: Any = None,
    data: str | None = None,
    images: int = 20,
    batch: int = 1,
    dynamic: bool = False,
    quantize: Any = None,
    k: str = "",
    run: ExportSettings = ExportSettings(threads=THREADS),  # noqa: B008  # frozen
) -> None:
    """To ONNX, OpenVINO, ... by `yolo export`, and checked against eager: outputs and routes on photos.

    imgsz=736,1280 is height and width, for photos that are wider than high: a square would be padded.
    k=all, or numbers such as k=4,8,16, makes a folder for models on windows that have a threshold: a router, and a
    graph for each number of windows; an image runs the first that holds what it needs.
    Example: mod-vision export model=best.pt format=openvino capacity=0.5 data=mine.yaml
    """
    from mod_vision.yolo.export.check import check_export
    from mod_vision.yolo.export.exporter import check_batches, export_model
    from mod_vision.yolo.model.windows import head_of
    from mod_vision.yolo.run.device import input_size, start, stride_of

    run = start(opened(model, replace(run, imgsz=sides_of(run.imgsz)))[1])
    args = {"batch": batch, "dynamic": dynamic, "quantize": quantize, "data": data if quantize else None}
    if k:
        others = {"capacity": capacity, **args, "batch": batch - 1}
        refused = [key for key, value in others.items() if value]
        _several(model, k, run.imgsz, format, refused, data or PHOTOS, images)
        return
    given = {key: value for key, value in args.items() if value}
    done = export_model(model, format, run.imgsz, capacity, run.device, **given)
    size, any_size = input_size(run.imgsz, stride_of(done.eager)), head_of(done.eager) is None
    check = check_export(*done, check_batches(data or PHOTOS, images, size, batch, dynamic, any_size))
    print(f"{done.path}: {check}")
    if not check.passed and quantize in (None, 32, "fp32", "w32a32"):
        raise ValueError(f"{done.path} does not compute what the model does; do not deploy it.")


def _several(model: str, k: str, imgsz: Any, format: str, others: list[str], data: str, images: int) -> None:
    """Export a folder for several numbers of windows, and check it.

    Raises:
        ValueError: If other keys are given that do not go with it, or the folder does not compute what the model does.
    """
    from mod_vision.yolo.export.check_several import check_several
    from mod_vision.yolo.export.exporter import check_batches
    from mod_vision.yolo.export.several import export_several

    if others:
        raise ValueError(
            f"k={k}: a folder for several numbers of windows is float, for one image, at the model's threshold; "
            f"leave out {', '.join(others)}, or k."
        )
    done = export_several(model, k, imgsz, format)
    check, said = check_several(done, check_batches(data, images, done.about["imgsz"], 1, False))
    print(f"{done.path}: {check}\n{said}\nwithout torch: python {done.path / 'run.py'} photo.jpg")
    if not check.passed:
        raise ValueError(f"{done.path} does not compute what the model does; do not deploy it.")
