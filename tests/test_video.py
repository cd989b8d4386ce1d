"""Written videos, decoded again: H.264 that browsers play from the first byte on, and what is kept on a full disk."""

from __future__ import annotations

import csv
import functools
import struct
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
from conftest import OPEN

from mod_vision.cli.main import main
from mod_vision.viz.encode import video_file
from mod_vision.viz.heatmap import heatmap
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.images import read_image

av = pytest.importorskip("av")
PHOTO = OPEN / "images" / "val" / sorted(path.name for path in (OPEN / "images" / "val").glob("*.jpg"))[7]
COLOUR = (160, 60, 40)  # a blue, which BT.601 and BT.709 tell apart


@pytest.fixture(scope="module")
def model():
    return load_model("yolo26n-mod-hybrid-seg.pt")


def write_pan(path, frames, size=(128, 80), fps=10.0):
    """A camera that pans over a photo."""
    photo = cv2.resize(read_image(PHOTO), (2 * size[0], 2 * size[1]))
    with video_file(path, fps, size) as add:
        for i in range(frames):
            x, y = size[0] * i // frames, size[1] * i // frames
            add(np.ascontiguousarray(photo[y : y + size[1], x : x + size[0]]))
    return path


def decode(path):
    """Return the stream and its frames (H, W, 3) in BGR."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        return stream, [frame.to_ndarray(format="bgr24") for frame in file.decode(stream)]


def boxes(path):
    """Return the names of the boxes of an .mp4, in order."""
    data, at, names = path.read_bytes(), 0, []
    while at < len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        names.append(name.decode())
        at += size
    return names


@pytest.mark.parametrize("fps", [12.5, 30000 / 1001, 240.0])
def test_an_mp4_is_h264_with_its_index_first(tmp_path, fps):
    stream, frames = decode(write_pan(tmp_path / "a.mp4", 60, (128, 80), fps))
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert (len(frames), stream.frames, frames[0].shape) == (60, 60, (80, 128, 3))
    assert float(stream.average_rate) == pytest.approx(fps, rel=1e-6)
    assert boxes(tmp_path / "a.mp4") == ["ftyp", "moov", "free", "mdat"]  # one piece, no fragments
    photo = cv2.resize(read_image(PHOTO), (256, 160))
    for i in (0, 30, 59):
        x, y = 128 * i // 60, 80 * i // 60
        assert np.abs(frames[i].astype(int) - photo[y : y + 80, x : x + 128]).mean() < 8
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_heatmap_plays_in_a_browser_in_its_own_colours(visit, tmp_path, suffix):
    """HD, where browsers guess other colours than FFmpeg writes unless the file says which."""
    with video_file(tmp_path / f"a{suffix}", 10, (1280, 720)) as add:
        for _ in range(20):
            add(np.full((720, 1280, 3), COLOUR, np.uint8))
    (tmp_path / "index.html").write_text(
        f'<link rel="icon" href="data:,"><video src="a{suffix}" muted autoplay></video><canvas></canvas>'
    )
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = visit(f"http://127.0.0.1:{server.server_port}/")
        page.wait_for_function("document.querySelector('video').ended", timeout=20_000)
        size = page.evaluate("(v => [v.videoWidth, v.videoHeight, v.duration])(document.querySelector('video'))")
        pixel = page.evaluate(
            "(c => (c.drawImage(document.querySelector('video'), 0, 0), [...c.getImageData(9, 9, 1, 1).data]))"
            "(document.querySelector('canvas').getContext('2d'))"
        )
        server.shutdown()
    assert size == [1280, 720, pytest.approx(2, abs=0.15)]
    np.testing.assert_allclose(pixel[:3], COLOUR[::-1], atol=4)


def test_a_video_that_is_turned_by_its_header_is_drawn_upright(model, tmp_path):
    data = bytearray(write_pan(tmp_path / "upright.mp4", 3).read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the matrix of the track: a quarter turn to the right
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 80 << 16, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    (video,) = heatmap(model, tmp_path / "turned.mp4", 96, tmp_path / "out", view="mask")
    _, frames = decode(video)
    assert len(frames) == 3
    upright = decode(tmp_path / "upright.mp4")[1][0]
    large = np.rot90(upright, -1).repeat(2, axis=0).repeat(2, axis=1)  # views of small photos are enlarged
    kept = frames[0][: large.shape[0], : large.shape[1]].astype(int)
    assert np.median(np.abs(kept - large)) < 12  # what is computed is as it was
    assert b"\x00\x01\x00\x00" in video.read_bytes()[video.read_bytes().index(b"tkhd") + 44 :][:4]  # not turned again


def test_a_video_that_was_cut_off_is_drawn_up_to_there(model, tmp_path, capsys):
    data = write_pan(tmp_path / "whole.mp4", 60).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    (video,) = heatmap(model, tmp_path / "cut.mp4", 96, tmp_path / "out")
    _, frames = decode(video)
    with video.with_suffix(".csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(frames)
    assert 5 < len(frames) < 60
    assert f"{len(frames)} frames, see cut-mask.mp4" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_video_without_a_frame_is_no_file(tmp_path, suffix):
    with video_file(tmp_path / f"a{suffix}", 10, (64, 32)):
        pass
    assert not list(tmp_path.iterdir())


def test_a_size_that_the_codec_does_not_take(tmp_path):
    with pytest.raises(OSError, match="libx264 does not write videos of 20000 x 2 pixels"):
        write_pan(tmp_path / "a.mp4", 1, (20000, 2))
    assert not list(tmp_path.iterdir())


def test_without_pyav_photos_are_drawn_and_videos_are_one_line(tmp_path, monkeypatch, capsys):
    clip = write_pan(tmp_path / "a.mp4", 3)
    monkeypatch.setitem(sys.modules, "av", None)  # as if it were not installed
    words = "imgsz=96", f"out={tmp_path / 'out'}"
    assert main(["heatmap", f"source={PHOTO}", *words]) == 0
    capsys.readouterr()
    assert main(["heatmap", f"source={clip}", *words]) == 1
    told = capsys.readouterr()
    assert told.err == 'error: videos are written by PyAV: pip install "mod-vision[video]".\n'
    assert told.out == ""


ON_A_FULL_DISK = """
import resource, signal, sys
from mod_vision.cli.main import main

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


def test_a_full_disk_keeps_the_video_up_to_there(tmp_path):
    clip = write_pan(tmp_path / "long.mp4", 100, (320, 200))
    out = tmp_path / "out"
    words = ["heatmap", "model=yolo26n-mod-hybrid-seg.pt", f"source={clip}", "imgsz=32", f"out={out}"]
    done = subprocess.run(
        [sys.executable, "-c", ON_A_FULL_DISK, "70000", *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: cannot write to the folder {out}: File too large."
    assert {path.name for path in out.iterdir()} == {"long-mask.mp4", "long-mask.csv"}
    capture, frames = cv2.VideoCapture(str(out / "long-mask.mp4")), 0
    while capture.read()[0]:
        frames += 1
    with (out / "long-mask.csv").open(newline="") as file:
        rows = len(list(csv.DictReader(file)))
    assert 50 <= frames < rows  # a fragment at least
    assert f": {rows} frames, see long-mask.mp4" in done.stdout
