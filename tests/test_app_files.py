"""What the local page is given: pictures, videos and models, and what it refuses before it opens them."""

from __future__ import annotations

import io
import json
import re
import subprocess

import cv2
import numpy as np
import pytest
from local_page import HALF, IMGSZ
from PIL import Image
from ultralytics.utils import checks

from mod_vision.viz.dropped import read_picture, read_zones
from mod_vision.viz.explore import Explorer, ViewSettings
from mod_vision.yolo.model.loading import load_model

pytest.importorskip("gradio_client")


def test_figures_are_those_of_the_routes(explorer, photos):
    image = cv2.imread(str(photos[0]))
    for capacity in (0.5, 0.25):
        look = explorer.look(image, ViewSettings(capacity))
        executed, dense = look.figures.gflops
        assert executed < dense
        assert all(abs(share - (1 - capacity)) < 0.15 for share in look.figures.by_layer.values())
    assert look.picture.shape[2] == 3
    assert look.latency.median > 0


@pytest.mark.parametrize("name", ["clip.m3u8", "clip.txt", "clip"])
def test_a_playlist_is_refused_before_it_is_opened(explorer, tmp_path, monkeypatch, name):
    """It can name a video of the server, whose size would be told."""
    from mod_vision.viz.app import _Answers, gr

    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: pytest.fail("opened"))
    (tmp_path / name).write_text("#EXTM3U\n#EXTINF:1,\n/srv/secret.mp4\n")
    for zone in ("", json.dumps(HALF)):
        with pytest.raises(gr.Error, match=rf"^'?{re.escape(name)} is not a video; known are "):
            _Answers(explorer).film(str(tmp_path / name), 10, None, zone, 0.5)


def test_huge_frames_are_refused_before_one_is_decoded(explorer, tmp_path):
    """A small file can hold them."""
    writer = cv2.VideoWriter(str(tmp_path / "huge.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (6000, 4000))
    writer.write(np.zeros((4000, 6000, 3), np.uint8))
    writer.release()
    assert (tmp_path / "huge.avi").stat().st_size < 1_000_000
    with pytest.raises(ValueError, match="frames of 6000 x 4000 pixels are too large, a video may have 4096 x 2160"):
        explorer.film(tmp_path / "huge.avi", tmp_path / "out.webm", ViewSettings(0.5), 5, lambda i, n: None)
    assert not (tmp_path / "out.webm").exists()


def test_pages_count(tmp_path):
    """A small file can hold many pages, all of which are decoded."""
    page = Image.new("1", (6000, 6000))
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page] * 3, compression="group4")
    with pytest.raises(ValueError, match="6000 x 6000 pixels on 4 pages are too many"):
        read_picture(str(tmp_path / "pages.tif"))


def test_what_is_no_picture_starts_no_process(tmp_path, monkeypatch):
    """Ultralytics would install a decoder of HEIF for it."""
    for name in ("run", "check_output", "Popen"):
        monkeypatch.setattr(subprocess, name, lambda *args, **kwargs: pytest.fail("a process"))
    monkeypatch.setattr(checks, "AUTOINSTALL", True)
    monkeypatch.setattr(checks, "ONLINE", True)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"^broken\.png is not a picture that can be read\.$"):
        read_picture(str(tmp_path / "broken.png"))
    with pytest.raises(ValueError, match=r"^zone: broken\.png is not a picture that can be read\.$"):
        read_zones(str(tmp_path / "broken.png"), "", None)


def test_whatever_a_decoder_raises_is_one_line(tmp_path):
    """Pillow raises NotImplementedError for the first, cannot tell the second; OpenCV reads no pixel of the third."""
    Image.new("RGB", (8, 8)).save(tmp_path / "whole.dds")
    unknown = bytearray((tmp_path / "whole.dds").read_bytes())
    unknown[80:88] = b"\4\0\0\0ABCD"  # a compression that nobody knows
    tag = (256).to_bytes(2, "little") + b"\2\0" + (4).to_bytes(4, "little") + b"abc\0"  # a width that is a text
    cut = io.BytesIO()
    Image.new("RGB", (99, 99)).save(cut, "PNG")
    files = {"a.png": bytes(unknown), "b.tif": b"II*\0\x08\0\0\0\1\0" + tag + bytes(4), "c.png": cut.getvalue()[:40]}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"^{re.escape(name)} is not a picture that can be read\.$"):
            read_picture(str(tmp_path / name))
        with pytest.raises(ValueError, match=rf"^zone[:=] ?{re.escape(name)} is n") as refused:
            read_zones(str(tmp_path / name), "", None)
        assert str(tmp_path) not in str(refused.value)


def test_models_without_a_capacity_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no routed layer"):
        Explorer("yolo26n.yaml", IMGSZ)
    with pytest.raises(FileNotFoundError):
        Explorer(tmp_path / "missing.pt", IMGSZ)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ValueError, match="neither a checkpoint"):
        Explorer(tmp_path / "model.onnx", IMGSZ)


def test_a_film_without_frames(explorer, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="no frame that can be read"):
        explorer.film(tmp_path / "broken.mp4", tmp_path / "out.webm", ViewSettings(0.5), 5, lambda i, n: None)


def test_the_routed_model_is_left_alone():
    yolo = load_model("yolo26n-mod-hybrid.yaml")
    before = {name for name, _ in yolo.model.named_modules()}
    Explorer(yolo, IMGSZ)
    assert {name for name, _ in yolo.model.named_modules()} == before
