"""The page: a template filled with figures and data, style and script within, in one file."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mod_vision import __version__
from mod_vision.files import writable_dir, write_text
from mod_vision.run_settings import ScoreSettings
from mod_vision.viz.report.data import Content, ReportSettings, collect, describe, telling_stop
from mod_vision.viz.report.figures import draw_figures, percent
from mod_vision.viz.report.gallery import encode, photo
from mod_vision.yolo.run.device import start

PACKAGES = ("ultralytics", "torch", "torchvision")


def write_report(
    model: str,
    data: str,
    capacity: Sequence[float] = (1.0, 0.75, 0.5, 0.25),
    images: int = 12,
    conf: float = 0.25,
    evaluate: bool = True,
    run: ScoreSettings = ScoreSettings(),  # noqa: B008  # frozen
    out: str | Path = "runs/mod-vision-report.html",
) -> Path:
    """Write a page about what a routed model skips, at several capacities.

    Args:
        model: Checkpoint (.pt) with routed layers. One in threshold mode is shown with its own thresholds too.
        data: Data YAML.
        capacity: Stops of the page's slider, shares of tokens in (0, 1]; 1 is the dense baseline.
        images: Images of the gallery, evenly spaced over the split; with scores those that the page ranks are added.
        conf: Lowest confidence of a box that is drawn, in [0, 1].
        evaluate: Score the whole split at each capacity; without it, the page has the gallery and the depth of patches.
        run: How the model is run and scored.
        out: The HTML file.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If model or data does not exist, or the split has no image.
        ValueError: If the model routes nothing, a value is out of range, or `out` is no .html file.
        OSError: If the file cannot be written.
    """
    path = Path(out)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"out={out}: the report is an .html file.")
    if not 0 <= conf <= 1:
        raise ValueError(f"conf must be in [0, 1], got {conf}.")
    writable_dir(path.parent)
    run = start(run)
    settings = ReportSettings(model, data, images, conf, run)
    content = collect(settings, capacity, evaluate)
    shares = ",".join(stop.label for stop in content.stops if stop.capacity is not None)
    words = {
        "model": model,
        "data": data,
        "capacity": shares,
        "images": images,
        "conf": conf,
        "imgsz": run.imgsz,
        "device": run.device,
        "threads": run.threads,
        "evaluate": evaluate,
        "out": out,
    }
    command = " ".join(["mod-vision report", *(shlex.quote(f"{key}={value}") for key, value in words.items())])
    write_text(path, render(content, settings, command))
    return path


def render(content: Content, settings: ReportSettings, command: str) -> str:
    """Return the page.

    Args:
        content: What it shows.
        settings: What it was made from.
        command: The command that makes it again.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = percent
    script = _read("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(_read("page.html")).render(
        style=Markup(_read("page.css")),
        script=Markup(script),
        script_digest=digest,
        facts=_facts(content, settings),
        command=command,
        model=Path(settings.model).name,
        stops=[describe(stop) for stop in content.stops],
        stages=content.stages,
        levels=content.levels,
        windowed=content.windowed,
        besides=content.windows[0].besides if content.windowed else None,
        photos=[(picture.name, photo(picture.image)) for picture in content.pictures],
        figures=draw_figures(content),
        ranking=content.ranking,
        ranked_at=describe(content.stops[telling_stop(content.stops)]),
        numbers={picture.name: i for i, picture in enumerate(content.pictures)},
        gallery=encode(content),
    )


def _facts(content: Content, settings: ReportSettings) -> dict[str, str]:
    """Return what the head of the page says of how it was made."""
    scored = f", {len(content.evaluations[0].files)} images scored" if content.evaluations else ""
    trained = all(layer.trained for picture in content.pictures for look in picture.looks for layer in look.maps)
    versions = {"mod_vision": __version__, **{name: version(name) for name in PACKAGES}}
    return {
        "Model": settings.model,
        "Data": f"{settings.data}, split {settings.run.split!r}{scored}",
        "Capacities": ", ".join(stop.label for stop in content.stops),
        "Image size": f"{settings.run.imgsz} px",
        **({} if trained else {"Router": "it has no training yet, so what it skips says nothing"}),
        "Made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "Versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }


def _read(name: str) -> str:
    """Return a text file beside this one."""
    return (files(__package__) / name).read_text(encoding="utf-8")
