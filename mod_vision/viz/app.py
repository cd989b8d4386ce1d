"""A local page where one drops a picture or a video, moves the capacity, and sees routes, finds and cost change."""

from __future__ import annotations

import ipaddress
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mod_vision.viz.explore import Explorer, Look, Settings
from mod_vision.viz.video import Figures
from mod_vision.viz.views import VIEWS
from mod_vision.yolo.images import some_images

MAX_PIXELS = 64_000_000  # of a picture: a small file can hold a huge one
MAX_FRAMES = 600
KEEP_SECONDS = 3600  # uploads and videos are deleted after that
START = 0.5
VIDEO_SUFFIX = ".webm"  # what browsers play and OpenCV writes


def app(
    model: Any, imgsz: int, device: str = "cpu", host: str = "127.0.0.1", port: int = 7860, max_mb: int = 50
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        model: A `YOLO` object, a .pt file, or a model YAML.
        imgsz: Longer side of the model's input.
        device: As in Ultralytics.
        host: Address to listen on. Everybody who reaches it can use the page: it asks for no password.
        port: Port to listen on.
        max_mb: Largest upload in megabytes.

    Raises:
        FileNotFoundError: If the model does not exist.
        ImportError: If Gradio is not installed.
        OSError: If the port is taken.
        ValueError: If the model is no PyTorch model, or routes nothing.
    """
    page = build(Explorer(model, imgsz, device))
    if not _is_local(host):
        print(f"anybody who reaches {host} can use this page; host=127.0.0.1 keeps it on this computer.")
    page.queue(max_size=16).launch(
        server_name=host,
        server_port=port,
        share=False,
        max_file_size=f"{max_mb}mb",
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        theme=_theme(),
        css=CSS,
    )


def build(explorer: Explorer) -> Any:
    """Return the page as `gradio.Blocks`.

    Raises:
        ImportError: If Gradio is not installed.
    """
    gr = _gradio()
    photos = [str(photo) for photo in some_images("mod-open.yaml", 6, "val")]

    def see(image: np.ndarray | None, *values: Any) -> tuple[np.ndarray | None, str]:
        """Draw a picture (H, W, 3) in RGB."""
        if image is None:
            return None, ""
        if image.shape[0] * image.shape[1] > MAX_PIXELS:
            raise gr.Error(f"The picture has more than {MAX_PIXELS // 10**6} million pixels.")
        try:
            look = explorer.look(np.ascontiguousarray(image[..., ::-1]), Settings(*values))
        except ValueError as error:
            raise gr.Error(f"{error}") from error
        return look.picture[..., ::-1], describe(look)

    def film(video: str | None, frames: int, *values: Any, progress: Any = gr.Progress()) -> tuple[str | None, str]:  # noqa: B008
        """Draw a video."""
        if video is None:
            raise gr.Error("Drop a video first.")
        out = Path(tempfile.mkdtemp(prefix="mod-vision-")) / f"routes{VIDEO_SUFFIX}"
        try:
            figures = explorer.film(Path(video), out, Settings(*values), int(frames), lambda i, n: progress((i, n)))
        except (ValueError, OSError) as error:
            raise gr.Error(f"{error}") from error
        return str(out), describe_video(figures)

    with gr.Blocks(title="mod_vision", analytics_enabled=False, delete_cache=(600, KEEP_SECONDS)) as page:
        gr.Markdown("# What does the network skip?\nDark patches passed no heavy block.")
        with gr.Row():
            capacity = gr.Slider(0.05, 0.95, START, step=0.05, label="capacity", info="share of patches to compute")
            view = gr.Radio([v for v in VIEWS if v != "page"], value="overlay", label="view")
            conf = gr.Slider(0.05, 0.95, 0.25, step=0.05, label="lowest confidence")
            boxes = gr.Checkbox(True, label="show what is found")
        settings = [capacity, view, boxes, conf]
        with gr.Tab("picture"):
            with gr.Row():
                image = gr.Image(value=photos[0], type="numpy", label="picture", sources=["upload", "clipboard", "webcam"])
                drawn = gr.Image(label="routes", alt_text="The picture with its routes", interactive=False, format="png", buttons=["fullscreen", "download"])
            told = gr.Markdown()
            gr.Examples(photos, image, label="photos to try")
            gr.on(
                [page.load, image.change, *(part.change for part in settings)],
                see,
                [image, *settings],
                [drawn, told],
                concurrency_id="model",
                trigger_mode="always_last",
                show_progress="minimal",
            )
        with gr.Tab("video"):
            with gr.Row():
                video = gr.Video(label="video", sources=["upload"])
                filmed = gr.Video(label="routes of the video", interactive=False, buttons=["download"])
            frames = gr.Slider(10, MAX_FRAMES, 100, step=10, label="most frames")
            start = gr.Button("draw the video", variant="primary")
            told_video = gr.Markdown()
            start.click(film, [video, frames, *settings], [filmed, told_video], concurrency_id="model")
    return page


def describe(look: Look) -> str:
    """Return the figures of a picture as a Markdown table."""
    routed, dense = look.latency.median, look.dense.median
    rows = [*_costs(look.figures), ("network, milliseconds", f"{routed:.1f}", f"{dense:.1f}", f"{dense / routed:.2f}×")]
    return _table(rows) + _skipped(look.figures)


def describe_video(figures: Figures) -> str:
    """Return the mean figures of a video as a Markdown table."""
    return _table(_costs(figures)) + _skipped(figures)


def _costs(figures: Figures) -> list[tuple[str, str, str, str]]:
    """Return the row of the executed GFLOPs."""
    assert figures.gflops is not None  # PyTorch models are counted
    executed, dense = figures.gflops
    return [("executed GFLOPs", f"{executed:.2f}", f"{dense:.2f}", f"{dense / executed:.2f}×")]


def _table(rows: list[tuple[str, str, str, str]]) -> str:
    """Return rows of this model against its dense twin."""
    lines = ["| | routed | dense twin | gain |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _skipped(figures: Figures) -> str:
    """Return what was skipped, in a line."""
    layers = ", ".join(f"{name} {100 * share:.0f} %" for name, share in figures.by_layer.items())
    return f"\n\nSkipped **{100 * figures.skipped:.0f} %** of all blocks; of the patches {layers}."


def _is_local(host: str) -> bool:
    """Return whether an address is this computer's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _gradio() -> Any:
    """Import Gradio, which shall call nobody."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ImportError('the app needs Gradio: pip install "mod-vision[app]".') from error
    return gradio


def _theme() -> Any:
    """Return a theme whose fonts are the system's own: nothing is fetched."""
    gr = _gradio()
    return gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


CSS = """
footer { display: none !important }
.prose table * { overflow-wrap: normal; word-break: normal }
"""
