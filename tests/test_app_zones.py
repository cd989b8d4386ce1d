"""Zones on the local page: their forms, what is refused, and that they last for one picture."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest
from local_page import HALF
from PIL import Image

from mod_vision.viz.dropped import read_zones
from mod_vision.viz.explore import Explorer, ViewSettings
from mod_vision.viz.window_annotator import ZONE
from mod_vision.yolo.data.zones import masks_of
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.zone import set_zone


@pytest.fixture(scope="module")
def windowed():
    return Explorer("yolo26n-mod-hituav.pt", 320)


def test_a_zone_is_of_one_picture(windowed, photos):
    """The next one is looked at as a whole; nothing is computed where the windows have no cell in the zone."""
    image = cv2.imread(str(photos[0]))
    settings = ViewSettings(0.3, boxes=False)
    whole = windowed.look(image, settings)
    zoned = windowed.look(image, settings._replace(zone=read_zones(None, json.dumps(HALF), None)))
    assert (zoned.picture == ZONE).all(-1).any()
    assert not (whole.picture == ZONE).all(-1).any()
    again = windowed.look(image, settings)
    np.testing.assert_array_equal(again.picture, whole.picture)


def test_the_zone_of_a_checkpoint_comes_back(tmp_path, photos):
    yolo = load_model("yolo26n-mod-hituav.pt")
    set_zone(yolo, HALF)
    explorer, image = Explorer(yolo, 320), cv2.imread(str(photos[0]))
    settings = ViewSettings(0.3, boxes=False)
    own = explorer.look(image, settings).picture
    assert (own == ZONE).all(-1).any()
    other = explorer.look(image, settings._replace(zone=[[[[0, 0], [0.5, 0], [0.5, 0.5]]]])).picture
    assert (own != other).any()
    np.testing.assert_array_equal(explorer.look(image, settings).picture, own)


def test_zones_in_every_form_are_one(tmp_path):
    mask = np.zeros((100, 200), np.uint8)
    mask[50:] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    (tmp_path / "zone.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [[*HALF, HALF[0]]]}))
    shape = {"shape_type": "rectangle", "points": [[0, 50], [200, 100]]}
    (tmp_path / "labelme.json").write_text(json.dumps({"imageWidth": 200, "imageHeight": 100, "shapes": [shape]}))
    pixels = json.dumps([[0, 50], [200, 50], [200, 100], [0, 100]])
    zones = [read_zones(str(tmp_path / name), "", None) for name in ("mask.png", "zone.geojson", "labelme.json")]
    zones += [read_zones(None, json.dumps(HALF), None), read_zones(None, pixels, (200, 100))]
    masks = [masks_of(zone)[0] for zone in zones]
    assert all((mask == masks[0]).all() for mask in masks)
    assert masks[0].float().mean() == 0.5
    assert read_zones(None, " ", (200, 100)) is read_zones(None, None, None) is None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("zone.json", b"__import__('os').system('touch ran')", "zone=zone.json is no JSON"),
        ("zone.json", b'["/etc/passwd"]', "zone=zone.json holds text where points should be"),
        ("zone.json", b"[" * 100_000, "zone=zone.json is no JSON"),
        ("zone.json", b" " * 10_000_001, "has 10 MB at most"),
        ("zone.png", b"no picture", "zone: zone.png is not a picture"),
        ("zone.py", b"raise SystemExit", "zone: zone.py is not a picture"),
        ("wide.png", None, "zone: 20000 x 4000 pixels are too many"),
    ],
)
def test_zones_that_are_refused(tmp_path, name, content, said):
    """In one line, which names no folder."""
    Image.new("1", (20_000, 4_000)).save(tmp_path / "wide.png")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        read_zones(str(tmp_path / name), "", (64, 64))
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize(
    "points", ["/etc/passwd", '"/etc/passwd"', '["/etc/passwd"]', "open('x')", "[[1, 2", "3", "null"]
)
def test_points_are_numbers(points):
    """A text never names a file of this computer."""
    with pytest.raises(ValueError, match="zone: points are a list such as"):
        read_zones(None, points, (64, 64))


def test_a_picture_has_one_zone(tmp_path, monkeypatch):
    """More are refused before any is drawn, which takes 4 MB each."""
    many = json.dumps([[[[0, 0], [1, 0], [1, 1]]]] * 5000)
    (tmp_path / "many.json").write_text(many)
    monkeypatch.setattr(cv2, "fillPoly", lambda *args, **kwargs: pytest.fail("drawn"))
    with pytest.raises(ValueError, match=r"^zone: a picture has one zone, a list of polygons; got 5,000 zones\.$"):
        read_zones(None, many, (64, 64))
    with pytest.raises(ValueError, match=r"^zone=many\.json must hold one zone, got 5,000"):
        read_zones(str(tmp_path / "many.json"), "", (64, 64))
