"""A conversion with a zone: what it counts by, what it keeps and goes on with, and zones that are refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from drone_images import BOX, in_box, objects_of
from ultralytics import YOLO

import mod_vision
from mod_vision.cli.main import main
from mod_vision.conversion.convert import ALL, _rows
from mod_vision.conversion.rows import Accuracy, score
from mod_vision.conversion.seen import look_at
from mod_vision.conversion.timing import Time, WindowTime
from mod_vision.conversion.wanted import Wanted
from mod_vision.run_settings import RunSettings
from mod_vision.yolo.data.zones import WHOLE
from mod_vision.yolo.model.windows import head_of

RUN = RunSettings(imgsz=192, threads=1)


def same_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take times for what they are not, so that what is chosen does not hang on them."""

    def windows(_: Any, sizes: Any, coarse: Any, __: Any) -> Any:
        return 20.0, {(size, share): WindowTime(3.0, 2.0 + size / 100) for size in sizes for share in coarse}

    def predictions(models: Any, _: Any) -> Any:
        return dict.fromkeys(models, Time(20.0, 20.0, 1.0))

    monkeypatch.setattr("mod_vision.conversion.winners.time_windows", windows)
    for module in ("winners", "convert"):
        monkeypatch.setattr(f"mod_vision.conversion.{module}.time_predictions", predictions)


def test_the_whole_picture_as_a_zone_gives_the_same_table(dense, drones, tmp_path, monkeypatch, capsys):
    """And where the zone is a part, what lies outside of it has no part in the choice either."""
    same_times(monkeypatch)
    chosen_by: list[tuple[int, list[Any]]] = []

    def looked(*given: Any, **named: Any) -> Any:
        seen = look_at(*given, **named)
        chosen_by.append((sum(len(image.boxes) for image in seen), []))
        return seen

    def scored(*given: Any) -> Any:
        chosen_by[-1][1].append(given[5])
        return score(*given)

    monkeypatch.setattr("mod_vision.conversion.winners.look_at", looked)
    monkeypatch.setattr("mod_vision.conversion.winners.score", scored)
    found = []
    for zone in (None, WHOLE, BOX):
        torch.manual_seed(0)
        folder = tmp_path / f"work{len(found)}"
        done = mod_vision.convert(dense, str(drones), Wanted(), True, ["look"], 2, RUN, folder, zone)
        found.append({row.name: row.accuracy for row in done.rows})
    whole, box = (own.pop(ALL) for own in found[1:])
    assert found[0] == found[1]
    assert found[0] != found[2]
    assert whole.ap == found[0]["dense at 192 px"].ap, "of the whole picture, all of the zone is the dense model"
    assert box.lost == 0
    counts = re.findall(r"in the zone are (\d+) of (\d+) labelled objects of the images kept", capsys.readouterr().out)
    assert [str(number) for number, _ in chosen_by[1:]] == [within for within, _ in counts]
    assert int(counts[1][0]) < int(counts[1][1]) == chosen_by[0][0]
    scored_in = [{zone_filter and json.dumps(zone_filter.zone) for zone_filter in used} for _, used in chosen_by]
    assert scored_in == [{None}, {json.dumps(WHOLE)}, {json.dumps([BOX])}]
    assert head_of(done.model.model).entry.zone_sums is not None
    assert max(done.timed.windows) > 0


def test_all_of_the_zone_is_timed_where_the_conversion_runs(dense, drones, monkeypatch):
    """The model of that row is built anew."""
    timed = {}

    def times(models: Any, photos: Any) -> Any:
        timed.update({name: next(yolo.model.parameters()).device.type for name, (yolo, _) in models.items()})
        return {name: Time(1.0, 1.0, 1.0) for name in models}

    monkeypatch.setattr("mod_vision.conversion.convert.time_predictions", times)
    monkeypatch.setattr("mod_vision.conversion.convert.score", lambda *_: Accuracy(1.0, 1.0))
    kept = sorted((drones.parent / "images" / "val").glob("*.jpg"))
    job = SimpleNamespace(
        dense=dense,
        parts=SimpleNamespace(kept=kept, data=str(drones)),
        run=RunSettings(imgsz=192, device="meta", threads=torch.get_num_threads()),
        progress=SimpleNamespace(once=lambda name, find: find()),
        zone_filter=SimpleNamespace(zone=[BOX]),
    )
    _rows(job, {}, {})
    assert timed[ALL] == "meta", "where no parameter is by itself"


def test_a_converted_model_keeps_its_zone_and_a_stopped_one_goes_on_in_it(dense, drones, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dense.save("dense.pt")
    (tmp_path / "gate.json").write_text(json.dumps([[160, 128], [480, 128], [480, 512], [160, 512]]))
    words = ["convert", "model=dense.pt", f"data={drones}", "imgsz=192", "steps=2", "router=look", "speedup=1.2"]
    words += ["threads=1", "force=True"]
    zone = ["zone=gate.json", "size=640x512"]

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mod_vision.conversion.convert.score", stop)
        assert main([*words, *zone]) == 130
    shutil.copytree("dense-mod-convert", "kept")
    capsys.readouterr()
    assert main([*words, *zone]) == 0
    told = capsys.readouterr().out
    assert "going on with what is in dense-mod-convert" in told
    objects = np.concatenate(list(objects_of(drones).values()))[:, 1:3].tolist()
    assert f"{sum(in_box(x, y) for x, y in objects)} of {len(objects)} labelled objects of val" in told
    assert re.search(r"\nempty: .* of val's 6 images .*; the mean of all 6 is [\d.]+ ms\n", told)
    assert YOLO("dense-mod.pt").model.yaml["mod"]["windows"]["zone"] == [[BOX]]
    for image in sorted((drones.parent / "images" / "val").glob("*.jpg")):
        (result,) = YOLO("dense-mod.pt").predict(image, imgsz=192, conf=0.01, verbose=False)
        assert all(0.23 < x < 0.77 and y > 0.23 for x, y, *_ in result.boxes.xywhn.tolist())
    Path("kept").rename("dense-mod-convert")
    monkeypatch.setattr("mod_vision.conversion.convert.fit_router", stop)
    assert main([*words, "zone=[[0, 0], [1, 0], [1, 1]]"]) == 130
    assert "going on" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("zone", "told"),
    [
        (
            ["zone=gate.json,gate.json"],
            "convert takes one zone, for all photos of the data set; got zones for 2 streams",
        ),
        (["zone=[[[[0,0],[1,0],[1,1]]],null]"], "convert takes one zone"),
        (["zone=none.json"], "zone=none.json does not exist"),
        (["zone=[[0, 0], [1, 1]]"], "a polygon has three points at least"),
        (["zone=[[0, 0], [900, 0], [900, 500]]"], "Give its size=WIDTHxHEIGHT"),
        (["zone=[[0, 0], [900, 0], [900, 500]]", "size=wide"], "size=wide is no size"),
        (["zone=[[0, 0], [900, 0], [900, 500]]", "size=640x512"], "a point lies outside of the picture"),
        (["size=640x512"], "size=640x512 is that of the pictures of a zone; add zone=, or did you mean imgsz=?"),
        (["zone=[[0, 0], [1, 0"], "brackets or quotes are not closed"),
    ],
)
def test_bad_zones_are_refused_and_nothing_is_written(dense, drones, tmp_path, monkeypatch, capsys, zone, told):
    monkeypatch.chdir(tmp_path)
    dense.save("dense.pt")
    (tmp_path / "gate.json").write_text(json.dumps(BOX))
    before = sorted(tmp_path.iterdir())
    assert main(["convert", "model=dense.pt", f"data={drones}", *zone]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert told in said[0]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("split", "what"), [("val", "val"), ("train", "the images kept aside from training")])
def test_a_zone_without_labelled_objects_is_refused_before_anything_is_trained(
    dense, drones, tmp_path, monkeypatch, split, what
):
    for file in (drones.parent / "labels" / split).glob("*.txt"):
        file.write_text("0 0.1 0.1 0.05 0.05\n")
    monkeypatch.setattr("mod_vision.conversion.convert.fit_router", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match=rf"none of the \d+ labelled objects of {what} lies in the zone"):
        mod_vision.convert(dense, str(drones), routers=["look"], run=RUN, folder=tmp_path / "work", zone=BOX)
