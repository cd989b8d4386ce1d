"""Pictures of windows: where the network ran, how often, and why; against what the forward was seen to do."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from window_models import IMGSZ, built_sure

from mod_vision.routing.moving import Moved
from mod_vision.viz.explore import Explorer
from mod_vision.viz.heatmap import heatmap
from mod_vision.viz.layout import WHITE
from mod_vision.viz.routes import RouteMap, Windows, by_windows, route_maps, skipped_depth, skipped_share
from mod_vision.viz.views import VIEWS, draw_heatmap, draw_view
from mod_vision.viz.window_annotator import ZONE, WindowAnnotator
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.images import read_image


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A model to which no window is worth its cost."""
    yolo = built_sure(tmp_path_factory.mktemp("empty"))
    head_of(yolo.model).entry.set_threshold(1000.0)
    return yolo


@pytest.fixture(scope="module")
def wide(photos):
    return cv2.resize(read_image(photos[0]), (320, 200))  # padded to 320 x 224: rows 12 to 212 are the image


def seen_by(model, image):
    """Maps of an image, and the windows that reached the first convolution."""
    seen = []
    first = head_of(model.model).entry.conv
    handle = first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    maps = route_maps(model, image, IMGSZ)
    handle.remove()
    return maps, seen[-1]


def loops(windows: Windows, rows: int, cols: int, extent) -> np.ndarray:
    """By how many windows the centre of each cell is covered."""
    counts = np.zeros((rows, cols), int)
    for row, col in np.ndindex(rows, cols):
        y, x = extent[0] + (row + 0.5) / rows * extent[2], extent[1] + (col + 0.5) / cols * extent[3]
        counts[row, col] = sum(t < y < t + h and left < x < left + w for t, left, h, w in windows.boxes)
    return counts


def test_windows_are_those_that_the_network_saw(windows_model, square_photo):
    (layer,), seen = seen_by(windows_model, square_photo)
    assert (layer.name, layer.kept.shape, layer.blocks, layer.extent) == ("model.0", (10, 10), 1, (0, 0, 1, 1))
    assert layer.windows.told() == "3 windows of 128 px"
    assert len(layer.windows.boxes) == len(seen) == 3
    for (top, left, height, width), window in zip(layer.windows.boxes * IMGSZ, seen, strict=True):
        assert height == width == 128
        y, x = round(top), round(left)
        pixels = square_photo[y : y + 128, x : x + 128, ::-1].transpose(2, 0, 1) / 255
        np.testing.assert_allclose(window.numpy(), pixels, atol=1e-5)
    np.testing.assert_array_equal(layer.windows.counts, loops(layer.windows, 10, 10, layer.extent))
    np.testing.assert_array_equal(layer.kept, layer.windows.counts > 0)
    assert skipped_share(layer) == skipped_depth([layer]) == 1 - layer.kept.mean()
    image = torch.from_numpy(square_photo[..., ::-1].transpose(2, 0, 1) / 255).float()[None]
    with torch.no_grad():
        scores = head_of(windows_model.model).entry.router.eval()(torch.nn.functional.avg_pool2d(image, 2), (10, 10))
    np.testing.assert_allclose(layer.score, scores[0, 0], atol=1e-5)
    assert layer.trained


def test_padding_is_removed(windows_model, wide):
    (layer,), seen = seen_by(windows_model, wide)
    assert layer.kept.shape == layer.score.shape == layer.windows.counts.shape == (7, 10)
    assert layer.extent == pytest.approx((-12 / 200, 0, 224 / 200, 1))
    assert len(layer.windows.boxes) == len(seen)
    np.testing.assert_array_equal(layer.windows.counts, loops(layer.windows, 7, 10, layer.extent))
    for top, _, height, _ in layer.windows.boxes:
        assert (top * 200 + 12) % 32 == pytest.approx(0, abs=1e-6)
        assert height * 200 == 128


def drawn(counts, boxes, **settings) -> RouteMap:
    counts = np.array(counts)
    windows = Windows(np.array(boxes, float).reshape(-1, 4), (64, 64), counts, **settings)
    return RouteMap("model.0", counts > 0, np.zeros(counts.shape, np.float32), 1 * (counts > 0), 1, windows=windows)


COUNTS = [[1, 2, 1, 0], [1, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


BOXES = [[0, 0, 0.5, 0.5], [0, 0.25, 0.5, 0.5]]


def test_what_was_computed_keeps_its_colours_and_the_rest_is_dark():
    layer, photo = drawn(COUNTS, BOXES), np.random.default_rng(0).integers(60, 256, (400, 400, 3), np.uint8)
    plain, tinted = (WindowAnnotator(tint=tint).annotate(photo.copy(), layer) for tint in (False, True))
    for row, col in np.ndindex(4, 4):  # a cell without its borders, and the number
        part = slice(row * 100 + 8, row * 100 + 60), slice(col * 100 + 8, col * 100 + 92)
        count = layer.windows.counts[row, col]
        if count:
            assert (plain[part] == photo[part]).all()
        else:
            assert plain[part].mean() < 0.6 * photo[part].mean()
        assert (tinted[part] == plain[part]).all() == (count < 2)


def test_each_window_has_a_border_of_its_own_also_where_windows_overlap():
    layer, photo = drawn(COUNTS, BOXES), np.full((400, 400, 3), 128, np.uint8)
    scene = WindowAnnotator().annotate(photo, layer)
    for top, left, height, width in layer.windows.boxes * 400:
        y, x = round(top + height / 3), round(left + width / 3)
        for line in (scene[y, round(left) : round(left) + 4], scene[y, round(left + width) - 4 : round(left + width)]):
            assert (line == WHITE).all(-1).any()
        for line in (scene[round(top) : round(top) + 4, x], scene[round(top + height) - 4 : round(top + height), x]):
            assert (line == WHITE).all(-1).any()
    assert (scene[200:] != WHITE).all()


def test_the_zone_is_outlined_and_named():
    zone = np.zeros((256, 256), bool)
    zone[128:, :128] = True
    zoned, photo = drawn(COUNTS, BOXES, zone=zone), np.full((400, 400, 3), 128, np.uint8)
    yellow = (WindowAnnotator().annotate(photo.copy(), zoned) == ZONE).all(-1)
    rows, cols = np.nonzero(yellow)
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (200, 399, 0, 199)
    for view in VIEWS:
        legends = [draw_view(photo, [layer], view).legends[0] for layer in (zoned, drawn(COUNTS, BOXES))]
        assert [(legend == ZONE).all(-1).any() for legend in legends] == [True, False]


def test_the_legend_tells_of_scores_only_where_they_placed_the_windows(
    tmp_path, windows_model, square_photo, monkeypatch
):
    """A zone, what moved and chance place windows too."""
    told = []
    monkeypatch.setattr("mod_vision.viz.views.swatches", lambda title, *_: told.append(title) or np.zeros((1, 1, 3)))
    still = Moved(torch.ones(1, 256, 256), torch.ones(1, 256, 256, dtype=torch.bool))
    draw_view(square_photo, route_maps(windows_model, square_photo, IMGSZ), "mask")
    for router in ("zone", "random"):
        draw_view(
            square_photo, route_maps(built_sure(tmp_path, sure=False, router=router), square_photo, IMGSZ), "mask"
        )
    with head_of(windows_model.model).entry.only_where(still):
        draw_view(square_photo, route_maps(windows_model, square_photo, IMGSZ), "mask")
    assert told == ["window 1 has most score", *["window 1 was placed first"] * 3]


def test_a_colour_means_the_same_in_every_image():
    """In one with fewer windows too; and the legend has it."""
    photo = np.full((400, 400, 3), 128, np.uint8)
    more = drawn([[3, 2, 1, 0]], [[0, 0, 1, 0.75], [0, 0, 1, 0.5], [0, 0, 1, 0.25]])
    fewer = drawn([[2, 2, 1, 0]], [[0, 0, 1, 0.75], [0, 0, 1, 0.5]])
    legend = WindowAnnotator().legend(3)
    for layer in (more, fewer):
        scene = WindowAnnotator().annotate(photo.copy(), layer)
        for col, count in enumerate(layer.windows.counts[0]):
            assert scene[120, col * 100 + 50].tolist() == legend[count].tolist()
    assert len({tuple(colour) for colour in legend.values()}) == 4
    assert list(WindowAnnotator().legend(0)) == [0]


@pytest.mark.parametrize("view", VIEWS)
def test_pictures_of_one_photo_are_of_one_size(windows_model, empty, view, square_photo):
    """However many windows there are: so they make a video."""
    few, none = (draw_view(square_photo, route_maps(m, square_photo, IMGSZ), view) for m in (windows_model, empty))
    assert few.picture.shape == none.picture.shape
    assert [block.shape for block in few.legends] == [block.shape for block in none.legends] or view == "page"
    assert few.compose().shape == none.compose().shape
    assert few.compose().tobytes() != none.compose().tobytes()


def test_an_empty_image_has_no_window(empty, square_photo, tmp_path, capsys):
    (layer,) = route_maps(empty, square_photo, IMGSZ)
    assert layer.windows.boxes.shape == (0, 4)
    assert layer.windows.told() == "no window of 128 px"
    assert not layer.kept.any()
    assert skipped_share(layer) == 1
    scene = WindowAnnotator().annotate(square_photo.copy(), layer)
    assert (scene < 120).all()
    cv2.imwrite(str(tmp_path / "empty.png"), square_photo)
    heatmap(empty, tmp_path / "empty.png", IMGSZ, tmp_path, boxes=True)
    assert "no window of 128 px, skipped model.0 100%" in capsys.readouterr().out


def test_windows_wider_than_the_image(tmp_path, square_photo):
    """A window is as high as the image then."""
    (layer,) = route_maps(built_sure(tmp_path), square_photo[:90], IMGSZ)
    assert layer.windows.told() == "1 window of 128 x 96 px"
    assert draw_heatmap(square_photo[:90], [layer]).dtype == np.uint8


def test_what_the_coarse_pass_saw_is_told(tmp_path, square_photo):
    maps = route_maps(built_sure(tmp_path, router="density", coarse=0.25, sure=False), square_photo, IMGSZ)
    assert maps[0].windows.coarse == 0.25
    assert maps[0].trained, "this router learns nothing"
    assert draw_view(square_photo, maps, "overlay").notes == ["besides: the whole image at 1/4 of its side"]


@pytest.mark.parametrize("settings", [{}, {"router": "scout"}, {"router": "prior"}, {"router": "stem", "entry": 5}])
def test_routers_without_training_are_told(tmp_path, square_photo, capsys, settings):
    """Also with weights of a dense model, which has no router; after a step of training no longer."""
    yolo = built_sure(tmp_path, sure=False, **settings)
    yolo.load(load_model("yolo26n.yaml").model)
    maps = route_maps(yolo, square_photo, IMGSZ)
    assert not maps[0].trained
    for view in VIEWS:
        drawn = draw_view(square_photo, maps, view)
        assert drawn.notes == ["router without training"]
        assert (drawn.compose([]) != 255).sum() > (drawn._replace(notes=[]).compose([]) != 255).sum()  # of videos too
    cv2.imwrite(str(tmp_path / "photo.png"), square_photo)
    heatmap(yolo, tmp_path / "photo.png", IMGSZ, tmp_path)
    assert "this router has no training yet" in capsys.readouterr().out
    assert not Explorer(yolo, IMGSZ).trained
    entry = head_of(yolo.model).entry
    yolo.model.train()(torch.rand(1, 3, 128, 128))
    entry.plan.logits.sum().backward()
    torch.optim.SGD(entry.router.parameters(), 0.01).step()
    assert route_maps(yolo, square_photo, IMGSZ)[0].trained
    heatmap(yolo, tmp_path / "photo.png", IMGSZ, tmp_path)
    assert "no training yet" not in capsys.readouterr().out


def test_tokens_have_no_windows(square_photo):
    maps = route_maps("yolo26n-mod-hybrid.yaml", square_photo, 160)
    assert draw_view(square_photo, maps, "mask").notes == ["router without training"]
    assert all(layer.trained for layer in route_maps("yolo26n-mod-hybrid-seg.pt", square_photo, 160))
    assert all(layer.windows is None for layer in maps)
    with pytest.raises(ValueError, match=r"model\.6 routes tokens, there are no windows to draw"):
        by_windows(maps[0])
