"""Zones from files and points, and the verb that gives one to a model."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_zone import BOX, LEFT
from ultralytics import YOLO

from mod_vision import set_capacity, set_zone
from mod_vision.cli.main import main
from mod_vision.conversion.zoned import zoned
from mod_vision.yolo.data.zones import MAX_ZONES, WHOLE, areas_of, masks_of, read_zone, zones_of
from mod_vision.yolo.model.settings import WindowSettings
from mod_vision.yolo.model.windows import head_of

RIGHT = [[0.5, 0.0], [1.0, 0.0], [1.0, 1.0], [0.5, 1.0]]


def files(folder: Path) -> dict[str, Path]:
    """The same zone in each form of a file."""
    ring = [[160, 120], [480, 120], [480, 360], [160, 360], [160, 120]]
    contents = {
        "list.json": BOX,
        "shape.geojson": {"type": "Polygon", "coordinates": [[[x / 640, y / 480] for x, y in ring]]},
        "features.geojson": {
            "type": "FeatureCollection",
            "features": [
                {"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": [[[*BOX, BOX[0]]]]}},
            ],
        },
        "labelme.json": {
            "imageWidth": 640,
            "imageHeight": 480,
            "shapes": [{"shape_type": "rectangle", "points": [[160, 120], [480, 360]]}],
        },
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    mask = np.zeros((480, 640), np.uint8)
    mask[120:360, 160:480] = 255
    cv2.imwrite(str(folder / "mask.png"), mask)
    return {name: folder / name for name in (*contents, "mask.png")}


def test_files_give_the_zone_they_hold(tmp_path):
    expected = masks_of([[BOX]])
    for name, file in files(tmp_path).items():
        assert torch.equal(masks_of([read_zone(file)]), expected), name


def test_holes_stay_holes(tmp_path):
    mask = np.zeros((256, 256), np.uint8)
    mask[32:224, 32:224] = 255
    mask[96:160, 96:160] = 0
    cv2.imwrite(str(tmp_path / "ring.png"), mask)
    found = masks_of([read_zone(tmp_path / "ring.png")])[0].numpy()
    assert (found != (mask > 0)).mean() < 0.01
    assert not found[100:156, 100:156].any()


def test_pixels_of_a_picture_become_shares():
    assert zones_of([[0, 0], [960, 0], [960, 1080], [0, 1080]], size=(1920, 1080)) == [[LEFT]]
    assert areas_of([[LEFT], [LEFT, RIGHT], [BOX]]) == [0.5, 1.0, 0.25]


@pytest.mark.parametrize(
    ("zone", "message"),
    [
        (5, "zone must be one polygon"),
        ([], "zone must be one polygon"),
        ([[0, 0], [1, 1]], "three points at least"),
        ([[0, 0], [1, "a"], [1, 1]], "each point is"),
        ([[0, 0], [1, 0], [1, float("nan")]], "each point is"),
        ([[0, 0], [1, 0, 3], [1, 1]], "each point is"),
        ([[0, 0], [1, 1], [0.5, 0.5]], "no area"),
        ([[0, 0], [-0.5, 0], [1, 1]], "outside of the picture, at -0.5"),
        ([[0, 0], [700, 0], [0, 700]], "700 is above 1, so points are in pixels"),
        ([[0.1, 0.5], [0.9, 0.5], [0.9, 0.5002]], "thinner than 1/256"),
        ([[0, 0], [1, 0], [10**400, 1]], "each point is"),
        ("self.json", "holds text"),
        ("null.geojson", "has not the form of GeoJSON"),
        ("hole.geojson", "has not the form of GeoJSON|got 'Polygon'"),
        ("shapes.json", "has not the form of GeoJSON|each point is"),
        ("missing.json", "missing.json does not exist"),
        ("empty.json", "empty.json is no JSON"),
        ("line.geojson", "got 'LineString'"),
        ("none.json", "holds no polygon"),
        ("black.png", "the mask is black"),
        ("text.png", "neither a picture nor .json"),
        ("circle.json", "must be polygons or rectangles, got 'circle'"),
    ],
)
def test_what_is_no_zone_is_refused_by_one_line(zone, message, tmp_path):
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "line.geojson").write_text('{"type": "LineString", "coordinates": [[0, 0], [1, 1]]}')
    (tmp_path / "none.json").write_text('{"type": "FeatureCollection", "features": []}')
    (tmp_path / "circle.json").write_text('{"imageWidth": 9, "imageHeight": 9, "shapes": [{"shape_type": "circle"}]}')
    (tmp_path / "self.json").write_text('["self.json"]')
    (tmp_path / "null.geojson").write_text('{"type": "FeatureCollection", "features": [null]}')
    (tmp_path / "hole.geojson").write_text('{"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1]], 5]}')
    (tmp_path / "shapes.json").write_text('{"imageWidth": 9, "imageHeight": 9, "shapes": [{"points": [[1, 2, 3]]}]}')
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((8, 8), np.uint8))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        zones_of(str(tmp_path / zone) if isinstance(zone, str) else zone)
    assert "\n" not in str(raised.value)


def test_a_dense_model_is_told_how_to_get_a_zone():
    with pytest.raises(ValueError, match="mod-vision zone model="):
        set_zone(YOLO("yolo26n.yaml"), BOX)


def test_the_verb_makes_a_dense_and_a_routed_model_look_at_a_zone(tmp_path, capsys):
    dense, file = tmp_path / "dense.pt", files(tmp_path)["labelme.json"]
    YOLO("yolo26n.yaml").save(dense)
    words = [f"model={dense}", f"zone={file}", "imgsz=640", "size=640x480", f"out={tmp_path / 'zone.pt'}"]
    assert main(["zone", *words]) == 0
    assert "the zone is 25 % of the picture" in capsys.readouterr().out
    yolo = YOLO(tmp_path / "zone.pt")
    entry = head_of(yolo.model).entry
    assert type(entry.router).__name__ == "ZoneRouter"
    found = yolo.predict(np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8), imgsz=640, verbose=False)
    assert len(found) == 1
    plan = head_of(yolo.predictor.model.model).entry.plan
    assert 0.25 < plan.share < 0.6
    words = [f"model={tmp_path / 'zone.pt'}", f"zone={BOX}", "imgsz=640", f"out={tmp_path / 'twice.pt'}"]
    assert main(["zone", *words]) == 0
    assert main(["zone", f"model={dense}", f"zone={file}", "size=big"]) == 1
    assert "size=big is no size" in capsys.readouterr().err


def test_a_fixed_capacity_is_no_more_than_the_zone_takes(tmp_path):
    yolo = YOLO("yolo26n-mod.yaml")
    set_capacity(yolo, 0.9)
    new, cost = zoned(yolo, BOX, 640, (640, 640))
    assert head_of(new.model).entry.capacities[0] == pytest.approx(cost.share, abs=1e-4)
    assert head_of(yolo.model).entry.zone_sums is None


@pytest.mark.parametrize("shape", [(9, 16), (18, 32), (480, 640), (2160, 3840)])
def test_masks_of_any_size_give_what_they_show(shape, tmp_path):
    """Also with noise, and thin parts."""
    mask = np.zeros(shape, np.uint8)
    mask[: -(-shape[0] // 3), shape[1] // 4 :] = 255
    mask[:, shape[1] // 4] = 255
    if shape[0] > 1000:
        mask[np.random.default_rng(0).random(shape) < 1e-4] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    assert areas_of([read_zone(tmp_path / "mask.png")])[0] == pytest.approx((mask > 0).mean(), abs=0.01)


def test_files_and_zones_and_none_can_be_mixed(tmp_path):
    file = files(tmp_path)["labelme.json"]
    assert zones_of([str(file), None, [LEFT]])[1:] == [WHOLE, [LEFT]]
    assert zones_of(np.array(BOX)) == [[BOX]]


def test_many_zones_are_refused_before_they_are_drawn(tmp_path, monkeypatch):
    """A small text can hold thousands, and a picture that each is drawn on takes 4 MB."""
    tiny = [[[0, 0], [1, 0], [1, 1]]]
    assert masks_of([tiny] * MAX_ZONES).shape == (MAX_ZONES, 256, 256)
    monkeypatch.setattr(cv2, "fillPoly", lambda *args, **kwargs: pytest.fail("drawn"))
    with pytest.raises(ValueError, match=r"^a model has 256 zones at most, one for each stream; got 5,000\.$"):
        zones_of([tiny] * 5000)
    (tmp_path / "many.json").write_text(json.dumps([tiny] * 5000))
    with pytest.raises(ValueError, match=r"many\.json must hold one zone, got 5,000; write a file for each stream"):
        zones_of(tmp_path / "many.json")


@pytest.mark.parametrize("size", [1920, (1920,), (0, 0), "1920x1080", (float("nan"), 2)])
def test_sizes_are_width_and_height(size):
    with pytest.raises(ValueError, match="width and height of a picture"):
        zones_of(BOX, size=size)


def test_a_yaml_holds_points_and_names_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"mod.windows.zone must be points"):
        WindowSettings.from_yaml({"zone": str(files(tmp_path)["mask.png"])})


def test_each_image_needs_its_zone_at_capacity_one_too():
    yolo = YOLO("yolo26n-mod.yaml")
    set_capacity(yolo, 1.0)
    set_zone(yolo, [[LEFT], [RIGHT]])
    with pytest.raises(ValueError, match="zones for 2 streams, and the batch has 1 images"):
        yolo.model.eval()(torch.rand(1, 3, 64, 64))


def test_a_zone_that_is_all_of_the_picture_is_run_whole():
    _, cost = zoned(YOLO("yolo26n.yaml"), [[0, 0], [1, 0], [1, 1], [0, 1]], 640, (1920, 1080))
    assert (cost.area, cost.share) == (1.0, 1.0)


def test_the_cost_is_of_the_windows_that_are_run():
    """A window as large as the zone is for one zone, and for the router that takes all of it."""
    middle = [[0.3, 0.3], [0.7, 0.3], [0.7, 0.7], [0.3, 0.7]]
    _, alone = zoned(YOLO("yolo26n.yaml"), middle, 640, (640, 640))
    _, each = zoned(YOLO("yolo26n.yaml"), [[middle], [middle]], 640, (640, 640))
    _, looked = zoned(YOLO("yolo26n-mod.yaml"), middle, 640, (640, 640))
    assert alone.windows == 1
    assert alone.share == 0.16
    assert each.share > alone.share
    assert looked.share > alone.share


def test_points_in_pixels_need_the_size_of_the_pictures(tmp_path, capsys):
    YOLO("yolo26n.yaml").save(tmp_path / "dense.pt")
    words = ["zone", f"model={tmp_path / 'dense.pt'}", "zone=[[0, 256], [640, 256], [640, 512], [0, 512]]", "imgsz=640"]
    words.append(f"out={tmp_path / 'gate.pt'}")
    assert main(words) == 1
    assert "size" in capsys.readouterr().err
    assert not (tmp_path / "gate.pt").exists()
    assert main([*words, "size=640x512"]) == 0
    assert "the zone is 50 % of the picture" in capsys.readouterr().out
