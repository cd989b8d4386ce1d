"""What goes into a report, without a browser: depth, ranking, charts; and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from reports import IMGSZ, MODEL, RUN

from mod_vision.cli.main import main
from mod_vision.routing import routed_layers
from mod_vision.viz.report.charts import ChartRow, dot_chart
from mod_vision.viz.report.data import ReportSettings, collect
from mod_vision.viz.routes import RouteMap, total_depth
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.validate import validate

pytestmark = pytest.mark.usefixtures("own_folder")  # Ultralytics makes a folder for its runs


def test_total_depth_against_a_look_at_each_patch():
    fine = RouteMap("a", np.eye(6, 8, dtype=bool), np.zeros((6, 8)), 3 * np.eye(6, 8, dtype=int), 3)
    depth = np.arange(12).reshape(3, 4)
    coarse = RouteMap("b", depth > 0, np.zeros((3, 4)), depth, 11, (-0.1, 0.0, 1.2, 1.0))
    total, extent = total_depth([coarse, fine])
    assert extent == fine.extent
    for row, col in np.ndindex(6, 8):
        below = int(((row + 0.5) / 6 + 0.1) / 1.2 * 3), col // 2
        assert total[row, col] == fine.depth[row, col] + depth[below]


def test_thresholds_come_first_and_rank_by_cost(evil_data):
    yolo = load_model(MODEL)
    for _, layer in routed_layers(yolo.model):
        layer.set_threshold(0.0)
    yolo.save(evil_data.parent / "threshold.pt")
    settings = ReportSettings(str(evil_data.parent / "threshold.pt"), str(evil_data), 1, 0.25, RUN)
    content = collect(settings, [0.5], evaluate=True)
    assert [stop.label for stop in content.stops] == ["thresholds", "0.5"]
    own, fixed = content.pictures[0].looks
    assert [layer.kept.mean() for layer in own.maps] != [layer.kept.mean() for layer in fixed.maps]
    shares = np.mean(list(content.evaluations[0].shares.values()), axis=0)
    assert len(set(shares)) > 1
    assert content.ranking.by_cost
    wanted = sorted(1 - shares, reverse=True)
    assert [image.skipped for image in content.ranking.most_skipped] == pytest.approx(wanted[:3])
    assert [image.skipped for image in content.ranking.least_skipped] == pytest.approx(wanted[3:])


def test_ranking_counts_object_tokens(evil_data):
    yolo = load_model(MODEL)
    found = validate(yolo, data=str(evil_data), imgsz=IMGSZ, batch=2, device="cpu")
    for layer, counts in found.objects.items():
        assert len(counts) == len(found.files) == 4
        routed, objects = np.sum(counts, axis=0)
        assert routed / objects == pytest.approx(found.recall.result().routed[layer]["objects"])
        assert objects == found.recall.total[layer]["objects"]


def test_dot_chart_places_shares_on_its_axis():
    chart = dot_chart([ChartRow("<a> & b", [0.0, 1.0], 0.5), ChartRow("c", [None, 0.25])], "axis", "label")
    assert "&lt;a&gt; &amp; b" in chart
    zero = float(re.search(r'<circle class="mark s0" cx="([\d.]+)"', chart)[1])
    ticks = [float(x) for x in re.findall(r'<line class="grid" x1="([\d.]+)"', chart)]
    assert zero == ticks[0]
    squares = [float(x) + 4.5 for x in re.findall(r'<polygon class="mark s1" points="([\d.]+),', chart)]
    assert squares == pytest.approx([ticks[4], ticks[1]], abs=0.11)
    assert float(re.search(r'<line class="chance" x1="([\d.]+)"', chart)[1]) == pytest.approx(ticks[2], abs=0.11)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["out=report.txt"], "out=report.txt: the report is an .html file"),
        (["capacity=half"], "capacity must be a number in (0, 1], got 'half'"),
        (["capacity=0.5,1.5"], "got 1.5"),
        (["capacity=1"], "at capacity 1 nothing is skipped"),
        (["capacity="], "give at least one below it"),
        (["conf=2"], "conf must be in [0, 1], got 2"),
        (["model=yolo26n.yaml"], "no routed layer"),
        (["model=none.pt"], "none.pt does not exist"),
        (["data=none.yaml"], "none.yaml"),
        (["out=file/report.html"], "cannot write to the output folder"),
    ],
)
def test_what_it_refuses(words, reason, evil_data, tmp_path, capsys):
    (tmp_path / "file").write_text("a file where the folder should go")
    given = {"model": MODEL, "data": str(evil_data), "out": "report.html"} | dict(word.split("=") for word in words)
    assert main(["report", *(f"{key}={value}" for key, value in given.items())]) == 1
    assert reason in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
