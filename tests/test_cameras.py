"""The study of still cameras: recordings are what their labels say, and each way gives its figures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from studies.cameras import WARMUP, cameras
from studies.recordings import recordings


@pytest.fixture(scope="module")
def made():
    return recordings("mod-hituav.yaml", "val", r"^\d_\d+_\d+", frames=12, movers=3)


def test_objects_are_where_their_labels_are(made):
    """Frames with and without an object differ there and, but for noise, nowhere else."""
    assert len(made) > 1
    recording = next(one for one in made if one.movers)
    frames = [frame.astype(float) for frame in recording]
    assert len(frames) == 12
    moving = [(i, box) for i in range(12) for label, _, box in recording.labels(i) if label >= 0]
    assert moving
    i, box = moving[0]
    x1, y1, x2, y2 = (round(n) for n in box)
    again = [frame.astype(float) for frame in recording]
    assert all(np.array_equal(a, b) for a, b in zip(frames, again, strict=True))
    recording.movers, kept = [], recording.movers
    without = [frame.astype(float) for frame in recording]
    recording.movers = kept
    off = np.abs(frames[i] - without[i]).mean(2)
    assert off[y1:y2, x1:x2].mean() > 5 * off.mean()


def test_crests_come_and_go_in_the_water_alone():
    still, sea = (
        recordings("mod-hituav.yaml", "val", r"^1_60_30", frames=2, movers=0, waves=waves)[0] for waves in (0.0, 0.5)
    )
    calm, rough = ([frame.astype(float) for frame in one] for one in (still, sea))
    off = [np.abs(a - b).mean(2) > 20 for a, b in zip(calm, rough, strict=True)]
    for one in off:
        assert one[:250].mean() < 1e-3 < one[256:].mean() < 0.3
    assert (off[0] & off[1]).sum() < 0.3 * off[0].sum()


def test_the_study_writes_its_figures(tmp_path, capsys):
    asked = {"frames": WARMUP + 2, "movers": 1, "waves": 0.5, "budget": 20, "out": str(tmp_path)}
    cameras("yolo26n-mod-hituav.pt", "mod-hituav.yaml", 320, r"^1_60_30", **asked)
    found = json.loads((tmp_path / "cameras.json").read_text())
    assert {"dense", "every 3rd frame", "stream, refresh 30", "stream, 20 ms", "routed"} <= found["ways"].keys()
    assert all(0 <= row["AP"] <= 100 and row["ms"] > 0 for row in found["ways"].values())
    assert found["ways"]["dense"]["delay"] == 0
    assert "| dense |" in capsys.readouterr().out
