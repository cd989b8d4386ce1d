"""The study of real recordings: what it tells of frames is so, and it writes its figures."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from frames import noisy, still, with_box

from studies.footage import WARMUP, _shown, footage


def test_a_blob_is_shown_where_nine_tenths_of_it_lie_in_windows():
    moving = np.zeros((200, 300), bool)
    moving[20:60, 20:60] = moving[100:140, 200:240] = True
    assert _shown(moving, np.array([[0, 0, 60, 60], [200, 100, 220, 140]], float)) == [True, False]
    assert _shown(moving, np.zeros((0, 4))) == [False, False]


def test_a_recording_gives_its_figures(tmp_path, capsys):
    writer = cv2.VideoWriter(str(tmp_path / "gate.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (640, 512))
    for i in range(WARMUP + 4):
        writer.write(noisy(with_box(still(), 20 * i, 200, 250, side=48), i))
    writer.release()
    asked = {"imgsz": 320, "window": 128, "out": str(tmp_path)}
    footage("yolo26n-mod-hituav.pt", str(tmp_path / "gate.avi"), **asked)
    found = json.loads((tmp_path / "footage.json").read_text())["videos"]["gate.avi"]
    assert found["frames"] == 4
    assert 0 < found["share"] < 1
    assert found["shown"] == 100
    assert found["of"]["shown"] >= 4
    assert found["ms"] > 0 < found["dense_ms"]
    assert "| gate.avi | 4 |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="it needs more"):
        footage("yolo26n-mod-hituav.pt", str(tmp_path / "gate.avi"), frames=WARMUP, **asked)
    with pytest.raises(FileNotFoundError, match=r"none\.avi is no video"):
        footage("yolo26n-mod-hituav.pt", str(tmp_path / "none.avi"), **asked)
