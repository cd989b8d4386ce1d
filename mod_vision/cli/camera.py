"""Verbs for cameras: `zone` and `stream`, which need no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mod_vision.cli.arguments import THREADS, milliseconds, opened, picture_of, zones_in
from mod_vision.files import fresh_path
from mod_vision.run_settings import RunSettings

PICTURE = "1920x1080"  # px, of which the cost is told if no other size is given


def zone(
    model: str,
    zone: str,
    size: str = "",
    imgsz: int = 0,
    out: str | None = None,
) -> None:
    """A model that computes and detects within a zone of the picture alone, from a dense or a routed one, untrained.

    The zone is a file (GeoJSON, LabelMe or a mask picture) or points, in shares of the picture or in its pixels.
    Several files, joined by commas, are for as many streams, of which each image of a batch is one.
    Example: mod-vision zone model=yolo26n.pt zone=gate.json imgsz=1280
    """
    from mod_vision.conversion.zoned import zoned
    from mod_vision.yolo.model.graph import check_out, save

    path = Path(out or f"{Path(model).stem}-zone.pt")
    check_out(path, model)
    zones = zones_in(zone, size)
    size = size or PICTURE
    yolo, run = opened(model, RunSettings(imgsz, "cpu", THREADS))
    new, cost = zoned(yolo, zones, run.imgsz, picture_of(size))
    path = fresh_path(path)
    save(new, path, model)
    print(
        f"the zone is {100 * cost.area:.0f} % of the picture; {100 * cost.share:.0f} % of the pixels of {size} at "
        f"imgsz={run.imgsz} cover it, in windows: {cost.windows}\n"
        f"saved as {path}: yolo predict model={path} imgsz={run.imgsz} source=..."
    )


def stream(
    model: str,
    refresh: int = 30,
    window: int = 320,
    budget: Any = 0,
    out: str | None = None,
) -> None:
    """A model for still cameras that computes what moved, from a dense or a routed one, untrained.

    In videos and streams what was found before stays where nothing moves, and each part is computed again after
    `refresh` frames at the latest. A first frame, and one of another scene, is run as the model runs any image.
    With a `budget`, what does not fit into the time of a frame waits for the next ones.
    Example: mod-vision stream model=yolo26n.pt refresh=30
    """
    from mod_vision.conversion.windowed import on_windows
    from mod_vision.yolo.model.graph import check_out, copy_model, save
    from mod_vision.yolo.model.settings import WindowSettings
    from mod_vision.yolo.model.windows import head_of
    from mod_vision.yolo.model.zone import set_refresh

    path = Path(out or f"{Path(model).stem}-stream.pt")
    check_out(path, model)
    yolo = opened(model, RunSettings(imgsz=0))[0]
    if head_of(yolo.model) is None:
        yolo = on_windows(yolo, WindowSettings.from_yaml({"size": window, "router": "zone"}))  # type: ignore[arg-type]
    else:
        yolo = copy_model(yolo)
    set_refresh(yolo, refresh, milliseconds(budget))
    path = fresh_path(path)
    save(yolo, path, model)
    print(f"saved as {path}: yolo predict model={path} source=camera.mp4, or a stream")
