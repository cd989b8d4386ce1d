"""Heat maps of streams without end, and of whatever is stopped by Ctrl-C: nothing that was drawn is lost."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import pytest
from clips import IMGSZ, PHOTOS, read_video, write_clip
from helpers import read_csv

from mod_vision.viz.heatmap import heatmap
from mod_vision.yolo.run.images import read_image

MODEL = "yolo26n-mod-hybrid-seg.pt"


class Camera(BaseHTTPRequestHandler):
    """A camera that never ends: MJPEG over HTTP."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        photo = read_image(PHOTOS[0])
        jpeg = cv2.imencode(".jpg", photo)[1].tobytes()
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
        try:
            while True:
                self.wfile.write(head + jpeg + b"\r\n")
                time.sleep(0.04)
        except OSError:  # nobody looks any more
            return

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def camera():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/live"
    server.shutdown()


def test_a_stream_without_end_stops_after_the_frames_asked_for(camera, tmp_path):
    (video,) = heatmap(MODEL, camera, IMGSZ, tmp_path, frames=4)
    rows = read_csv(video.with_suffix(".csv"))
    assert [row["frame"] for row in rows] == ["1", "2", "3", "4"]
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)
    frames, fps = read_video(video)
    # the film lasts as long as it took: views that come faster than the camera's pace have no frame of their own
    assert len(frames) / fps == pytest.approx(seconds[-1], abs=1.5 / fps + 0.001)
    assert (frames[0].shape[1], video.suffix) == (read_image(PHOTOS[0]).shape[1], ".mp4")


def test_streams_side_by_side_get_a_video_each(camera, tmp_path):
    (tmp_path / "two.streams").write_text(f"{camera}\n{camera}\n")
    first, second = heatmap(MODEL, tmp_path / "two.streams", IMGSZ, tmp_path / "out", frames=2)
    assert first.name.startswith("http-127-0-0-1-")
    assert first.name.endswith("-live-mask.mp4")
    assert second.name.endswith("-live-2-mask.mp4")
    for video in (first, second):
        assert len(read_csv(video.with_suffix(".csv"))) == 2
        assert read_video(video)[0]


COMMAND = """
import signal, sys
from mod_vision.cli.main import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background of a shell ignore it
sys.exit(main(sys.argv[1:]))
"""


def start(source, out, stdout=subprocess.PIPE):
    """Run the command in a process of its own until it has drawn a few frames."""
    model = f"model={MODEL}"
    words = [sys.executable, "-c", COMMAND, "heatmap", model, f"source={source}", f"imgsz={IMGSZ}", f"out={out}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("GITHUB_ACTIONS", None)  # where Ultralytics takes no terminal for one
    process = subprocess.Popen(words, stdout=stdout, stderr=subprocess.PIPE, text=True, env=env)
    deadline = time.monotonic() + 90
    while not any(file.read_text().count("\n") > 4 for file in out.glob(".*.part.csv")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    return process


def test_ctrl_c_keeps_what_was_drawn_of_a_stream(camera, tmp_path):
    process = start(camera, tmp_path / "out")
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith("stopped\n")
    (video,) = (tmp_path / "out").glob("*.mp4")
    rows = read_csv(video.with_suffix(".csv"))
    assert len(list((tmp_path / "out").iterdir())) == 2  # nothing temporary is left
    frames, fps = read_video(video)
    assert abs(len(frames) - fps * float(rows[-1]["seconds"])) <= 2  # as long as the recording was
    assert len(rows) > 3
    assert f": {len(rows)} frames, see {video.name}" in said
    assert f"mean of {len(rows)} frames" in said
    assert "frame/s" not in said  # a log has no progress bar
    assert "\r" not in said


def test_ctrl_c_of_a_video_on_a_terminal(tmp_path):
    ours, terminal = os.openpty()
    process = start(write_clip(tmp_path / "long.mp4", 2000), tmp_path / "out", terminal)
    os.close(terminal)
    process.send_signal(signal.SIGINT)
    said = b""
    with contextlib.suppress(OSError):  # how a terminal ends
        while part := os.read(ours, 4096):
            said += part
    os.close(ours)
    assert process.wait(60) == 130
    rows = read_csv(tmp_path / "out" / "long-mask.csv")
    assert len(read_video(tmp_path / "out" / "long-mask.mp4")[0]) == len(rows) > 3
    states = re.findall(rb"\r\x1b\[K\S+ \S*long\.mp4: \d+% \S+ (\d+)/2000 [^\n]*?frame/s", said)
    assert states
    assert 1 <= int(states[-1]) <= len(rows)
    assert re.search(rb"\r\x1b\[K\S+ \S*long\.mp4: %d frames, see long-mask\.mp4" % len(rows), said)
