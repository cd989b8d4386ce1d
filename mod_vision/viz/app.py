"""A local page where one drops a picture or a video, moves the capacity, and sees routes, finds and cost change."""

from __future__ import annotations

import html
import ipaddress
import re
import socket
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mod_vision.errors import one_line
from mod_vision.resources import PHOTOS
from mod_vision.viz.dropped import ZONE_FILES, read_picture, read_zones
from mod_vision.viz.explore import Explored, Explorer, ViewSettings, frame_size
from mod_vision.viz.video import Figures
from mod_vision.viz.views import DEFAULT_VIEW, VIEWS
from mod_vision.yolo.run.images import some_images

try:
    import gradio as gr
    from starlette.middleware import Middleware

    from mod_vision.viz.guard import Guard
except ImportError as error:
    raise ImportError('the app needs Gradio: pip install "mod-vision[app]".') from error

MAX_FRAMES = 600
MAX_PORT = 65535
FORM_BYTES = 100_000  # of a request besides its file
KEEP_SECONDS = 3600  # uploads and videos are deleted after that
CAPACITIES = (0.05, 0.95)
MODEL = "model"  # what all questions share, so that one waits for the other
VIDEO_SUFFIX = ".mp4"
DROP = "Drop a picture, or choose one of the photos below, and see here what the network skips."
DROP_VIDEO = "Drop a video and press the button. What the network skips is drawn on its frames, which takes a while."
CSS = """
footer { display: none !important }
.prose table * { overflow-wrap: normal; word-break: normal }
#tries .grid-wrap { height: auto; min-height: 0 }
#tries .grid-container { grid-template-columns: repeat(auto-fit, minmax(90px, 1fr)) }
@media (max-width: 640px) { .prose td, .prose th { padding: 4px 6px !important; font-size: 13px } }
"""


def app(
    model: Any, imgsz: int, device: str = "cpu", host: str = "127.0.0.1", port: int = 7860, max_mb: int = 50
) -> None:
    """Serve the page until Ctrl-C; arguments and errors are those of `start`."""
    if not _is_local(host):
        print(f"anybody who reaches {host} can use this page; host=127.0.0.1 keeps it on this computer.")
    start(model, imgsz, device, host, port, max_mb).block_thread()


def start(model: Any, imgsz: int, device: str, host: str, port: int, max_mb: int) -> Any:
    """Start the server in a thread of its own, and return the page; its `local_url` tells where it is.

    The page's fonts are those of the system: others would be fetched.

    Args:
        model: A `YOLO` object, a .pt file, or a model YAML.
        imgsz: Longer side of the model's input.
        device: As in Ultralytics.
        host: Address to listen on. Everybody who reaches it can use the page: it asks for no password.
        port: Port to listen on.
        max_mb: Largest upload in megabytes, of all its files together.

    Raises:
        FileNotFoundError: If the model does not exist.
        OSError: If the host is unknown, or the port is taken.
        ValueError: If there is no such port, the model is no PyTorch model, or routes nothing.
    """
    _check_address(host, port)
    page = build(Explorer(model, imgsz, device))
    try:
        page.queue(max_size=16).launch(
            server_name=host,
            server_port=port,
            share=False,
            allowed_paths=_photos(),  # else Gradio refuses those that lie outside of the folder it is started in
            max_file_size=f"{max_mb}mb",
            app_kwargs={"middleware": [Middleware(Guard, host=host, max_bytes=(max_mb << 20) + FORM_BYTES)]},
            footer_links=[],
            ssr_mode=False,
            theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=CSS,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise OSError(f"port {port} of {host} is not free; choose another with port=...") from error
    print(f"the page is at {page.local_url}; Ctrl-C ends it", flush=True)
    return page


def _check_address(host: str, port: int) -> None:
    """Refuse what no server can listen on."""
    if not 1 <= port <= MAX_PORT:
        raise ValueError(f"port={port}: a port is a number from 1 to {MAX_PORT}, such as port=7860.")
    try:
        socket.getaddrinfo(host, port)
    except (OSError, UnicodeError) as error:
        raise OSError(
            f"host={host} is unknown: give an address of this computer, such as host=127.0.0.1, or 0.0.0.0 for all."
        ) from error


class _Answers:
    """What the page asks of the model; Gradio lets one question in at a time."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.folder = tempfile.TemporaryDirectory(prefix="mod-vision-")

    def see(
        self, file: str | None, zone: str | None, points: str | None, *values: Any
    ) -> tuple[np.ndarray | None, str]:
        """Draw a picture, and tell its figures."""
        if file is None:
            return None, DROP
        try:
            image = read_picture(file)
            zones = read_zones(zone, points, image.shape[1::-1])
            look = self.explorer.look(image, ViewSettings(*values)._replace(zone=zones))
        except ValueError as error:
            return None, _line(error)
        return look.picture[..., ::-1], _describe(look)

    def film(
        self,
        file: str | None,
        frames: int,
        zone: str | None,
        points: str | None,
        *values: Any,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[str, str]:
        """Draw a video, and tell its figures."""
        if file is None:
            raise gr.Error("drop a video first.")
        out = Path(self.folder.name) / f"routes{VIDEO_SUFFIX}"  # replaces the last one: Gradio serves a copy
        try:
            settings = ViewSettings(*values)._replace(zone=read_zones(zone, points, frame_size(Path(file))))
            figures = self.explorer.film(Path(file), out, settings, int(frames), lambda done, of: progress((done, of)))
        except (ValueError, OSError) as error:
            raise gr.Error(html.escape(f"{error}"), print_exception=False) from error
        return str(out), _table(_costs(figures)) + _skipped(figures)


def build(explorer: Explorer) -> gr.Blocks:
    """Return the page."""
    answers = _Answers(explorer)
    capacity = round(float(np.clip(explorer.capacity, *CAPACITIES)), 2)
    unit = "the image" if explorer.windowed else "patches"
    with gr.Blocks(title="mod_vision", analytics_enabled=False, delete_cache=(600, KEEP_SECONDS)) as page:
        gr.Markdown(f"# What does the network skip?\n{_lede(explorer)}")
        with gr.Row():
            settings = [
                gr.Slider(*CAPACITIES, capacity, step=0.05, label="capacity", info=f"share of {unit} to compute"),
                gr.Radio([view for view in VIEWS if view != "page"], value=DEFAULT_VIEW, label="view"),
                gr.Checkbox(True, label="show what is found"),
                gr.Slider(0.05, 0.95, 0.25, step=0.05, label="lowest confidence"),
            ]
        zone = _zone_inputs(explorer.windowed)
        with gr.Tab("picture"):
            _picture_tab(answers, zone, settings, page)
        with gr.Tab("video"):
            _video_tab(answers, [*zone, *settings])
    return page


def _zone_inputs(windowed: bool) -> list[Any]:
    """Lay out where a zone is dropped or written, which models that run on windows look at alone."""
    with gr.Accordion("zone: look at a part of the picture alone", open=False, visible=windowed), gr.Row():
        file = gr.File(label="GeoJSON, LabelMe or a mask picture", file_types=ZONE_FILES, height=140, elem_id="zone")
        points = gr.Textbox(
            label="or its points",
            info="shares of width and height, or pixels; press Enter",
            placeholder="[[0, 0.3], [1, 0.3], [1, 1], [0, 1]]",
        )
    return [file, points]


def _line(error: Exception) -> str:
    """Return why nothing is drawn as Markdown in which what a file holds is text: no link, and no picture to fetch."""
    text = re.sub(r"([^\w\s])", r"\\\1", one_line(error))
    return f"**Not drawn:** {text}"


def _lede(explorer: Explorer) -> str:
    """Return what the pictures show, in a line."""
    trained = "" if explorer.trained else " **The router has no training yet, so what it skips says nothing.**"
    if not explorer.windowed:
        return f"Shaded patches passed no heavy block.{trained}"
    besides = ", for large objects on the whole image in small too" if explorer.coarse else ""
    return f"The network ran on the windows{besides}; what is shaded lies in none.{trained}"


def _photos() -> list[str]:
    """Return the photos to try."""
    return [str(photo) for photo in some_images(PHOTOS, 6, "val")]


def _picture_tab(answers: _Answers, zone: list[Any], settings: list[Any], page: gr.Blocks) -> None:
    """Lay out the tab for pictures, which are drawn anew when anything changes."""
    photos = _photos()

    def pick(event: gr.SelectData) -> str:
        return photos[event.index]

    with gr.Row():
        image = gr.Image(photos[0], label="picture", sources=["upload", "clipboard", "webcam"], elem_id="picture")
        image.preprocess = _uploaded  # else Gradio reads the file, and says "Error" where it cannot
        drawn = gr.Image(
            label="routes",
            alt_text="The picture with its routes",
            interactive=False,
            format="png",
            buttons=["fullscreen", "download"],
            elem_id="routes",
        )
    message = gr.Markdown(DROP)
    tries = gr.Gallery(
        photos, label="photos to try", allow_preview=False, interactive=False, buttons=[], elem_id="tries"
    )
    tries.select(pick, None, image)
    gr.on(
        [page.load, image.change, zone[0].change, zone[1].submit, zone[1].blur, *(s.change for s in settings)],
        answers.see,
        [image, *zone, *settings],
        [drawn, message],
        concurrency_id=MODEL,
        trigger_mode="always_last",
        show_progress="minimal",
    )


def _video_tab(answers: _Answers, settings: list[Any]) -> None:
    """Lay out the tab for videos, which are drawn when the button is pressed."""
    with gr.Row():
        video = gr.Video(label="video", sources=["upload"], elem_id="video")
        film = gr.Video(label="routes of the video", interactive=False, buttons=["download"], elem_id="film")
    frames = gr.Slider(10, MAX_FRAMES, 100, step=10, label="most frames")
    start = gr.Button("draw the video", variant="primary")
    message = gr.Markdown(DROP_VIDEO)
    start.click(answers.film, [video, frames, *settings], [film, message], concurrency_id=MODEL)


def _uploaded(payload: Any) -> str | None:
    """Return the file of an upload."""
    return None if payload is None else payload.path


def _describe(look: Explored) -> str:
    """Return the figures of a picture as a Markdown table."""
    routed, dense = look.latency.median, look.dense.median
    rows = [
        *_costs(look.figures),
        ("network, milliseconds", f"{routed:.1f}", f"{dense:.1f}", f"{dense / routed:.2f} x"),
    ]
    return _table(rows) + _skipped(look.figures)


def _costs(figures: Figures) -> list[tuple[str, str, str, str]]:
    """Return the row of the executed GFLOPs."""
    assert figures.gflops is not None  # PyTorch models are counted
    executed, dense = figures.gflops
    return [("executed GFLOPs", f"{executed:.2f}", f"{dense:.2f}", f"{dense / executed:.2f} x")]


def _table(rows: list[tuple[str, str, str, str]]) -> str:
    """Return rows of this model against its dense baseline."""
    lines = ["| | routed | dense baseline | gain |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _skipped(figures: Figures) -> str:
    """Return what was skipped, in a line."""
    if figures.windows is not None:
        count = f"{figures.windows:.3g}"
        windows = f"{count} window{'s' * (count != '1')}"
        return f"\n\nSkipped **{100 * figures.skipped:.0f} %** of the image: the network ran on {windows}."
    layers = ", ".join(f"{name} {100 * share:.0f} %" for name, share in figures.by_layer.items())
    return f"\n\nSkipped **{100 * figures.skipped:.0f} %** of all blocks; of the patches {layers}."


def _is_local(host: str) -> bool:
    """Return whether an address is this computer's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
