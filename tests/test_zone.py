"""Zones: outside nothing is computed and nothing is detected, inside everything is as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import FEW, SEEDS, randomise
from helpers import build_yaml
from hypothesis import given
from hypothesis import strategies as st
from ultralytics import YOLO
from window_pairs import described, made, pair, tensors
from windowed import SIZE, calibrated, looked_at

from mod_vision import set_capacity, set_zone
from mod_vision.routing.padding import GRAY, Frame
from mod_vision.routing.placing import plan_windows, window_count
from mod_vision.routing.zone import GRID, Extent, cells_in, extent_of, points_in, sums_of
from mod_vision.yolo.blocks.windows import WindowedHead
from mod_vision.yolo.data.zones import WHOLE
from mod_vision.yolo.export.check import check_export
from mod_vision.yolo.export.exporter import export_model
from mod_vision.yolo.model.coarse import boxes_of
from mod_vision.yolo.model.windows import head_of

LEFT = [[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]
RIGHT = [[0.5, 0.0], [1.0, 0.0], [1.0, 1.0], [0.5, 1.0]]
BOX = [[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]]


def extent(y: float, x: float, height: float, width: float) -> Extent:
    return Extent(torch.tensor([[y, x]]), torch.tensor([[height, width]]))


def masks(seed: int, count: int = 1) -> torch.Tensor:
    """Random zones of a few rectangles."""
    numbers = np.random.default_rng(seed)
    found = torch.zeros(count, GRID, GRID, dtype=torch.bool)
    for mask in found:
        for _ in range(numbers.integers(1, 4)):
            (top, left), (high, wide) = numbers.integers(0, GRID - 10, 2), numbers.integers(8, GRID, 2)
            mask[top : top + high, left : left + wide] = True
    return found


PADDED = st.tuples(*[st.sampled_from([0.0, 0.125, 0.25])] * 2)


@given(seed=SEEDS, h=st.integers(1, 40), w=st.integers(1, 40), pad=PADDED)
@FEW
def test_cells_of_a_zone_are_those_with_one_of_its_squares(seed, h, w, pad):
    """Each square, by its centre, lies in a cell; all cells with a square of the zone count, and no others."""
    mask, (y, x) = masks(seed), pad
    found = cells_in(sums_of(mask), (h, w), extent(y, x, 1 - 2 * y, 1 - 2 * x)).view(h, w)
    centre = (torch.arange(GRID) + 0.5) / GRID
    rows, cols = ((first + centre * (1 - 2 * first)) * n for first, n in ((y, h), (x, w)))
    expected = torch.zeros(h, w, dtype=torch.bool)
    at = mask[0].nonzero()
    expected[rows[at[:, 0]].long(), cols[at[:, 1]].long()] = True
    missing, more = expected & ~found, found & ~expected
    tie = any(bool(torch.isclose(lines, lines.round(), atol=1e-3).any()) for lines in (rows, cols))
    if not tie:
        assert not missing.any()
        assert not more.any()


@given(seed=SEEDS, y=st.sampled_from([0.0, 0.1]), x=st.sampled_from([0.0, 0.2]))
@FEW
def test_points_of_a_zone_are_those_in_its_squares(seed, y, x):
    mask = masks(seed, 2)
    numbers = torch.rand(2, 50, 2, generator=torch.Generator().manual_seed(seed))
    where = extent(y, x, 1 - 2 * y, 1 - 2 * x)
    where = Extent(*(t.expand(2, -1) for t in where))
    found = points_in(sums_of(mask), where.first[:, None] + numbers * where.sides[:, None], where)
    square = (numbers * GRID).long().clamp(max=GRID - 1)
    clear = ((numbers * GRID).frac() - 0.5).abs().amax(-1) < 0.49  # not at the border of a square
    expected = torch.stack([m[s[:, 0], s[:, 1]] for m, s in zip(mask, square, strict=True)])
    assert torch.equal(found[clear], expected[clear])


@given(seed=SEEDS, h=st.integers(3, 20), w=st.integers(3, 20), side=st.integers(2, 8))
@FEW
def test_windows_of_a_zone_own_all_of_it(seed, h, w, side):
    """Within the zone no position is left to nobody, as between windows that only touch; at its border 8 px can be."""
    inside = cells_in(sums_of(masks(seed)), (h, w), extent(0, 0, 1, 1))
    window = (min(side, h), min(side, w))
    most = h * w
    counts = tuple(range(most + 1))
    plan = plan_windows(torch.full((1, h * w), 9.0), (h, w), window, most, 32, 0.5, inside, counts, cover=True)
    owners = plan.put(torch.ones(plan.width, 1, window[0] * window[1] * 16), (8,), 0.0)
    owned = owners.view(h, 4, w, 4).transpose(1, 2).flatten(2).amin(-1)
    zone = inside.view(1, h, w).float()
    within = -F.max_pool2d(F.pad(-zone, (1, 1, 1, 1), value=-1.0), 3, 1)[0]
    assert owned[within > 0].all()
    assert (plan.covered()[0] > 0)[zone[0] > 0].all()
    assert plan.width <= window_count((h, w), window, 1.0) * 4 + 1


def test_a_rectangle_takes_as_few_windows_as_cover_it():
    inside = torch.zeros(1, 24, 30, dtype=torch.bool)
    inside[:, 9:, :18] = True
    plan = plan_windows(
        torch.full((1, 720), 9.0), (24, 30), (10, 10), 20, 32, 0.5, inside.flatten(1), tuple(range(21)), cover=True
    )
    assert plan.width == 4


def test_the_border_of_a_picture_is_found():
    """Gray on both sides, as Ultralytics fits a picture into a batch."""
    image = torch.full((1, 3, 64, 128), GRAY)
    image[:, :, 8:56] = torch.rand(3, 48, 128)
    first, sides = extent_of(Frame(image))
    assert first.tolist() == [[0.125, 0.0]]
    assert sides.tolist() == [[0.75, 1.0]]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("yolo26n", {}),
        ("yolo26n", {"router": "look"}),
        ("yolo26n", {"router": "look", "coarse": 0.25}),
        ("yolo26n-seg", {}),
        ("yolo26n-pose", {}),
        ("yolo11n-obb", {}),
        ("yolov8n", {"capacity": 1.0}),
        ("yolov10n", {}),
    ],
)
@torch.no_grad()
def test_outside_nothing_is_detected(name, settings):
    routed, _ = pair(name, **{"router": "zone", "size": 128, **settings})
    x, head = torch.rand(2, 3, 384, 512), head_of(routed)
    assert (centres_and_scores(routed(x), head)[1] > 0).any()
    set_zone(routed, BOX)
    centres, scores = centres_and_scores(routed(x), head)
    share = centres / torch.tensor([512.0, 384.0])
    outside = ((share < 0.24) | (share > 0.76)).any(-1)
    assert (scores[outside] == 0).all()
    if head.entry.plan is not None:
        assert (head.entry.plan.covered()[:, 0, 0] == 0).all() or settings.get("router") == "look"


def centres_and_scores(out: Any, head: WindowedHead) -> tuple[torch.Tensor, torch.Tensor]:
    boxes, scores = boxes_of(out, head)
    return (boxes[..., :2] + boxes[..., 2:]) / 2, scores.amax(-1)


@torch.no_grad()
def test_a_window_as_large_as_the_image_gives_what_dense_gives_inside():
    routed, dense = pair("yolov8n", router="look", size=640)
    routed, dense, x = routed.double(), dense.double(), torch.rand(1, 3, 256, 256, dtype=torch.float64)
    set_zone(routed, BOX)
    head_of(routed).entry.crowded = None
    got, expected = tensors(routed(x))[0], tensors(dense(x))[0]
    centre = expected[:, :2] / 256
    inside = ((centre > 0.25) & (centre < 0.75)).all(1, keepdim=True)
    order, places = (t[0].T for t in (got, torch.cat((expected[:, :4], expected[:, 4:] * inside), 1)))
    order, places = (t[t[:, 4:].amax(1) > 0] for t in (order, places))
    key = lambda t: t[t[:, 0].mul(1e4).add(t[:, 1]).argsort()]  # noqa: E731
    torch.testing.assert_close(key(order), key(places), rtol=1e-6, atol=1e-6)
    assert len(order)


@torch.no_grad()
def test_each_stream_has_its_zone_and_a_batch_gives_what_its_images_give():
    routed, _ = pair("yolov8n", router="zone", size=64)
    routed = routed.double()
    x = torch.rand(3, 3, 256, 256, dtype=torch.float64)
    zones = [[LEFT], None, [BOX]]  # the second is crowded: all of it
    set_zone(routed, zones)
    together = routed(x)[0]
    for i, zone in enumerate(zones):
        set_zone(routed, [zone or WHOLE] * 2)
        alone = routed(x[[i, i]])[0]
        wanted, got = (t[:, t[4:].amax(0) > 0] for t in (alone[0], together[i]))
        assert wanted.shape[1]
        torch.testing.assert_close(*(t[:, t[0].mul(1e4).add(t[1]).argsort()] for t in (got, wanted)))
    set_zone(routed, zones)
    with pytest.raises(ValueError, match="zones for 3 streams, and the batch has 2 images"):
        routed(x[:2])


def test_a_zone_is_kept(tmp_path):
    """In the checkpoint, in its YAML, and in a model that is built from that; None takes it away."""
    model = randomise(made(described("yolo26n", router="zone", size=128))).eval()
    yolo = YOLO("yolo26n.yaml")
    yolo.model = model
    set_zone(yolo, BOX)
    x = torch.rand(1, 3, 256, 256)
    expected = model(x)[0]
    yolo.save(tmp_path / "z.pt")
    again = YOLO(tmp_path / "z.pt").model.float().eval()
    assert again.yaml["mod"]["windows"]["zone"] == [[BOX]]
    assert torch.equal(head_of(again).entry.zone_sums, head_of(model).entry.zone_sums)
    rebuilt = build_yaml(tmp_path, described("yolo26n", router="zone", size=128, zone=BOX)).eval()
    rebuilt.load_state_dict(model.state_dict())
    rebuilt.end2end = model.end2end
    torch.testing.assert_close(rebuilt(x)[0], expected)
    set_zone(yolo, None)
    assert "zone" not in model.yaml["mod"]["windows"]
    assert head_of(model).entry.zone_sums is None


def test_a_training_does_without_the_zone():
    model = made(described("yolo26n", router="look", size=128, capacity=0.25, zone=[[[0, 0], [0.1, 0], [0.1, 0.1]]]))
    x = torch.rand(1, 3, 256, 256)
    model.train()(x)
    assert head_of(model).entry.plan.inside is None or head_of(model).entry.plan.inside.all()
    model.eval()(x)
    assert 0 < head_of(model).entry.plan.inside.sum() < 5


@pytest.mark.parametrize(("name", "settings"), [("yolo26n", {}), ("yolo26n-seg", {"router": "look", "coarse": 0.25})])
def test_an_export_keeps_the_zone(name, settings, photos, tmp_path):
    file = calibrated(name, photos, tmp_path, **{"router": "zone", **settings})
    yolo = YOLO(file)
    set_zone(yolo, BOX)
    if name == "yolo26n":
        head_of(yolo.model).entry.threshold = None  # an export has a fixed number of windows
        set_capacity(yolo, 0.5)
    yolo.save(file)
    export = export_model(file, "onnx", SIZE)
    check = check_export(*export, looked_at(photos)[:6])
    assert (check.same_indices, check.max_error < 2e-3) == (1.0, True)
    found = YOLO(export.path, task=yolo.task).predict(photos[0], imgsz=SIZE, conf=0.001, verbose=False)[0]
    centres = found.boxes.xywhn[:, :2]
    assert len(centres)
    assert ((centres > 0.24) & (centres < 0.76)).all()


@torch.no_grad()
def test_a_rectangle_is_one_window_of_its_size():
    """With zones of their own, images have squares: a batch gives what they give alone."""
    routed, _ = pair("yolov8n", router="zone", size=128)
    set_zone(routed, [[0.25, 0.25], [0.75, 0.25], [0.75, 0.5], [0.25, 0.5]])
    entry = head_of(routed).entry
    routed(torch.rand(1, 3, 512, 512))
    assert (entry.plan.width, entry.plan.window, entry.plan.share) == (1, (4, 8), 0.125)
    assert entry.plan.corners.tolist() == [[[4, 4]]]
    set_zone(routed, [[LEFT], [BOX]])
    routed(torch.rand(2, 3, 512, 512))
    assert entry.plan.window == (4, 4)
    assert entry.plan.covered()[0][:, :8].all()
    assert entry.plan.covered()[1][4:12, 4:12].all()
