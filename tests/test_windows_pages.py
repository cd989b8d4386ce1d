"""Windows in a video, in the app, in the pictures of a training, and in the report."""

from __future__ import annotations

import csv
import json

import cv2
import numpy as np
import pytest
from browser import fits, unnamed_controls
from window_models import IMGSZ

from mod_vision.run_settings import ScoreSettings
from mod_vision.viz.explore import Explorer, ViewSettings
from mod_vision.viz.heatmap import heatmap
from mod_vision.viz.layout import WHITE
from mod_vision.viz.report import write_report
from mod_vision.viz.routes import route_maps, skipped_share
from mod_vision.viz.training_pictures import draw_mosaic


def test_a_video_counts_windows(windows_model, tmp_path, square_photo):
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (IMGSZ, 192))
    for top in (0, 100):
        writer.write(np.ascontiguousarray(square_photo[top : top + 192]))
    writer.release()
    (video,) = heatmap(windows_model, tmp_path / "clip.avi", IMGSZ, tmp_path / "out")
    rows = list(csv.DictReader(video.with_suffix(".csv").open()))
    assert [row["windows"] for row in rows] == ["2", "2"]
    assert all(0 < float(row["gflops"]) < float(row["dense_gflops"]) for row in rows)


def test_the_app_follows_the_capacity(windows_model, square_photo, tmp_path):
    from mod_vision.viz.app import _describe, build

    explorer = Explorer(windows_model, IMGSZ)
    looks = [explorer.look(square_photo, ViewSettings(capacity)) for capacity in (0.2, 0.7)]
    assert [look.figures.windows for look in looks] == [1, 4]
    assert "of the image: the network ran on 1 window." in _describe(looks[0])
    assert "the network ran on 4 windows." in _describe(looks[1])
    assert looks[0].figures.gflops[0] < looks[1].figures.gflops[0] < looks[1].figures.gflops[1]
    texts = json.dumps(build(explorer).get_config_file(), default=str)
    assert "share of the image to compute" in texts
    assert "The network ran on the windows; what is shaded lies in none." in texts


def test_the_mosaic_of_a_training(windows_model, photos, tmp_path):
    picture = draw_mosaic(windows_model.model, photos[:3], IMGSZ, tmp_path / "mosaic.jpg")
    assert (tmp_path / "mosaic.jpg").is_file()
    assert (picture == WHITE).all(-1).mean() < 0.7


@pytest.fixture(scope="module")
def report(windows_model, tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    windows_model.save(folder / "windows.pt")
    run = ScoreSettings(IMGSZ, "cpu", 1)
    write_report(str(folder / "windows.pt"), str(tiny_data), [1.0, 0.5], 2, 0.25, False, run, folder / "page.html")
    return folder / "page.html"


def test_the_report_shows_windows(report, visit, windows_model, tiny_data):
    page = visit(report.as_uri(), viewport={"width": 1200, "height": 900})
    shown = json.loads(page.locator("#data").text_content())
    assert shown["windowed"]
    assert [stage["name"] for stage in shown["stages"]] == ["model.0"]
    for image in shown["images"]:
        dense, look = image["looks"]
        assert dense["windows"] is None
        (layer,) = route_maps(windows_model, tiny_data.parent / "images" / "val" / image["name"], IMGSZ)
        np.testing.assert_allclose(look["windows"]["boxes"], layer.windows.boxes, atol=1e-3)
        assert look["windows"]["told"] == layer.windows.told()
        assert look["all"]["skipped"] == pytest.approx(skipped_share(layer))
    page.locator("#stop").fill("1")
    said = page.locator("#summary").inner_text()
    assert f"of the image skipped at capacity 0.5: {shown['images'][0]['looks'][1]['windows']['told']}" in said
    sparse = page.evaluate("document.getElementById('overlay').toDataURL()")
    page.locator("#stop").fill("0")
    assert page.evaluate("document.getElementById('overlay').toDataURL()") != sparse
    page.locator("#overlay").focus()
    assert page.locator("#route-title").inner_text() == "Cell, row 1, column 1"
    assert "computed, 1 window" in page.inner_text("#spoken")
    assert page.get_by_text("Windows of the cells").first.is_visible()
    assert "no training yet" not in page.content()
    assert unnamed_controls(page) == []
    assert fits(page)
