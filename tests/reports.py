"""What reports are made of: a checkpoint, a data set with bad names, and settings."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest
import yaml

from mod_vision.resources import resource_dir
from mod_vision.run_settings import ScoreSettings

OPEN = resource_dir("assets") / "open"
MODEL, IMGSZ, STOPS = "yolo26n-mod-hybrid-seg.pt", 160, [1.0, 0.5, 0.25]
RUN = ScoreSettings(IMGSZ, "cpu", 1)
EVIL_CLASS = "</script><script>document.title = 'broken'</script>"
EVIL_FILE = "<img src=x onerror=alert(1)> & \"co\" 'so'.jpg"
EVIL_STUFF = "<b>sky</b>"


@pytest.fixture(scope="module")
def evil_data(tmp_path_factory):
    """Four photos, one with a bad name, a class with a worse one, and a dense annotation: sky above, road below."""
    root = tmp_path_factory.mktemp("evil")
    for kind in ("images", "labels", "stuff"):
        (root / kind / "val").mkdir(parents=True)
    for i, source in enumerate(sorted((OPEN / "images" / "val").glob("*.jpg"))[:4]):
        name = EVIL_FILE if i == 0 else source.name
        stem = name.removesuffix(".jpg")
        shutil.copy(source, root / "images" / "val" / name)
        shutil.copy(OPEN / "labels" / "val" / f"{source.stem}.txt", root / "labels" / "val" / f"{stem}.txt")
        stuff = np.zeros(cv2.imread(str(source)).shape[:2], np.uint8)
        stuff[len(stuff) // 2 :] = 1
        (root / "stuff" / "val" / f"{stem}.png").write_bytes(cv2.imencode(".png", stuff)[1].tobytes())
    names = {**yaml.safe_load((OPEN / "mod-open.yaml").read_text())["names"], 0: EVIL_CLASS}
    described = {"path": str(root), "train": "images/val", "val": "images/val", "names": names}
    described |= {"stuff": {"val": "stuff/val"}, "stuff_names": {0: EVIL_STUFF, 1: "road"}}
    (root / "evil.yaml").write_text(yaml.safe_dump(described))
    return root / "evil.yaml"
