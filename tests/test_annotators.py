"""Annotators and views: every pixel as its patch says, in place, and readable at any size."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from conftest import FEW, OPEN
from hypothesis import given
from hypothesis import strategies as st
from ultralytics.engine.results import Results

from mod_vision.viz.annotators import SKIPPED, WHITE, ConfidenceAnnotator, DepthAnnotator, SkipAnnotator
from mod_vision.viz.layout import gradient, swatches, with_blocks
from mod_vision.viz.results import draw_results
from mod_vision.viz.routes import RouteMap, crop_maps, stage_titles, total_depth, total_levels
from mod_vision.viz.traced import open_traced
from mod_vision.viz.views import VIEWS, draw_heatmap, draw_view
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.images import read_image

PHOTO = sorted((OPEN / "images" / "val").glob("*.jpg"))[0]
SHADE = (64, 40, 32)  # what becomes of black
EYE = np.eye(4, dtype=int)
LAYER = RouteMap("model.6", EYE > 0, np.linspace(-3, 3, 16, dtype=np.float32).reshape(4, 4), 6 * EYE, 6)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("annotator", [DepthAnnotator(), SkipAnnotator()])
def test_they_draw_on_the_scene_and_return_it(annotator):
    image = noise(64, 80)
    scene = image.copy()
    assert annotator.annotate(scene, [LAYER]) is scene
    assert (scene != image).any()
    assert ConfidenceAnnotator().annotate(scene, LAYER) is scene


@st.composite
def placed(draw):
    """Maps whose grids reach beyond the image or stop short of it, and the size of a scene."""
    rows, cols = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    extent = tuple(draw(st.floats(*bounds)) for bounds in ((-0.2, 0.1), (-0.2, 0.1), (0.9, 1.3), (0.9, 1.3)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    depth = rng.integers(0, 4, (rows, cols))
    layer = RouteMap("a", depth > 0, rng.normal(size=(rows, cols)).astype(np.float32), depth, 3, extent)
    return layer, draw(st.integers(1, 90)), draw(st.integers(1, 90))


def label_at(layer, y, x, shape):
    """The depth at a pixel, by the place of its centre in the grid."""
    top, left, height, width = layer.extent
    rows, cols = layer.depth.shape
    row = int(np.clip(((y + 0.5) / shape[0] - top) / height * rows, 0, rows - 1))
    col = int(np.clip(((x + 0.5) / shape[1] - left) / width * cols, 0, cols - 1))
    return layer.depth[row, col]


@FEW
@given(placed())
def test_each_pixel_has_the_colour_of_its_patch(drawn):
    layer, height, width = drawn
    image = noise(height, width)
    annotator = DepthAnnotator(opacity=1.0)
    depth, skip = annotator.annotate(image.copy(), [layer]), SkipAnnotator().annotate(image.copy(), [layer])
    palette = annotator.palette([layer])
    for y, x in np.random.default_rng(0).integers(0, (height, width), (40, 2)):
        label = label_at(layer, y, x, image.shape)
        border = (depth[y, x] == SKIPPED).all() or (skip[y, x] == WHITE).all()
        if label:
            assert border or (depth[y, x] == palette[label]).all()
            assert border or (skip[y, x] == image[y, x]).all()
        elif not border:
            gray = int(cv2.cvtColor(image[y : y + 1, x : x + 1], cv2.COLOR_BGR2GRAY)[0, 0])
            np.testing.assert_allclose(depth[y, x], 0.2 * gray + np.array(SHADE), atol=1)
            np.testing.assert_allclose(skip[y, x], 0.2 * image[y, x] + SHADE, atol=1)


@pytest.mark.parametrize(("side", "width"), [(64, 1), (700, 1), (1400, 2), (4200, 6)])
def test_borders_are_crisp_and_grow_with_the_picture(side, width):
    halves = RouteMap("a", np.array([[True, False]]), np.zeros((1, 2), np.float32), np.array([[1, 0]]), 1)
    scene = SkipAnnotator().annotate(np.zeros((side, side, 3), np.uint8), [halves])
    row = scene[side // 2]
    assert {tuple(pixel) for pixel in row.tolist()} == {(0, 0, 0), WHITE, SHADE}
    assert (row == WHITE).all(axis=1).sum() == width


def test_patches_of_few_pixels_have_no_borders():
    scene = SkipAnnotator().annotate(np.zeros((12, 12, 3), np.uint8), [LAYER])
    assert {tuple(pixel) for pixel in scene.reshape(-1, 3).tolist()} == {(0, 0, 0), SHADE}


def test_confidence_is_the_sigmoid_of_the_score_and_opacity_follows_it():
    annotator = ConfidenceAnnotator(opacity=1.0)
    scene = annotator.annotate(np.full((40, 40, 3), 100, np.uint8), LAYER)
    for row, col in np.ndindex(4, 4):
        level = round(255 / (1 + np.exp(-float(LAYER.score[row, col]))))
        share, gray = level / 255, 96 + 62
        expected = share * annotator.palette()[level] + (1 - share) * gray
        np.testing.assert_allclose(scene[10 * row + 5, 10 * col + 5], expected, atol=1)


def test_legends_name_what_can_occur_and_stages_by_their_scale():
    layers = [LAYER._replace(levels=(0, 6), stride=16), LAYER._replace(levels=(0, 3), blocks=3, stride=32)]
    assert total_levels(layers) == list(DepthAnnotator().legend(layers)) == [0, 3, 6, 9]
    assert total_levels([LAYER]) == list(range(7))
    assert stage_titles(layers) == ["P4 stage", "P5 stage"]
    assert stage_titles([layers[0]] * 2) == ["P4 stage 1", "P4 stage 2"]
    assert stage_titles([LAYER]) == ["model.6"]


def test_levels_are_those_that_patches_have():
    """Of a real model, also where later blocks take fewer patches."""
    model = load_model("yolo26n-mod-hybrid-seg.pt")
    for capacity, levels in ((0.5, [(0, 6), (0, 3)]), ([0.75, 0.25], [(0, 3, 6), (0, 2, 3)])):
        set_capacity(model, capacity)
        layers = crop_maps(open_traced(model, 320).trace(read_image(PHOTO)))
        assert [layer.levels for layer in layers] == levels
        assert [layer.stride for layer in layers] == [16, 32]
        assert all(set(np.unique(layer.depth)) == set(layer.levels) for layer in layers)


@pytest.mark.parametrize(("height", "width"), [(120, 160), (300, 400)])
def test_text_hides_little_of_a_small_picture(height, width):
    """However much is found, and no label hides another: a label has the colour of its box, the boxes are outside."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, [width, height], (60, 2))
    boxes = np.concatenate((corners, corners + 1, np.linspace(0.9, 0.3, 60)[:, None], np.zeros((60, 1))), 1)
    result = Results(
        np.zeros((height, width, 3), np.uint8), "", {0: "a class of a long name"}, boxes=torch.tensor(boxes)
    )
    scene = draw_results(np.zeros((height, width, 3), np.uint8), result)
    assert 0.05 < scene.any(axis=2).mean() < 0.25 + 60 * 25 / (height * width)


@pytest.mark.parametrize("cmap", ["viridis", "cividis", "magma"])
def test_colour_maps_get_brighter_with_depth(cmap):
    palette = DepthAnnotator(cmap).palette([LAYER])
    light = palette @ np.array((0.0722, 0.7152, 0.2126))
    assert len(palette) == 7
    assert (np.diff(light) > 0).all()


@pytest.mark.parametrize(
    ("scene", "maps", "said"),
    [
        (np.zeros((8, 8), np.uint8), [LAYER], r"\(H, W, 3\) uint8"),
        (np.zeros((8, 8, 3)), [LAYER], r"\(H, W, 3\) uint8"),
        (np.zeros((8, 8, 3), np.uint8), [], "no route map"),
    ],
)
def test_what_cannot_be_annotated(scene, maps, said):
    for annotator in (DepthAnnotator(), SkipAnnotator()):
        with pytest.raises(ValueError, match=said):
            annotator.annotate(scene, maps)


def test_options_that_do_not_exist():
    with pytest.raises(ValueError, match="cmap must be one of viridis, cividis, magma, got 'jet'"):
        DepthAnnotator("jet")
    with pytest.raises(ValueError, match=r"opacity must be in \[0, 1\], got 2"):
        ConfidenceAnnotator(opacity=2)
    with pytest.raises(ValueError, match="view must be one of mask, overlay, side, page, got 'map'"):
        draw_heatmap(noise(9, 9), [LAYER], "map")


@pytest.fixture(scope="module")
def looked():
    """A photo with its maps and results, from the checkpoint that ships."""
    image = read_image(PHOTO)
    model = open_traced("yolo26n-mod-hybrid-seg.pt", 160)
    trace = model.trace(image)
    result = model.postprocess(0.05)(trace.forward, image)
    assert len(result.boxes) > 2
    assert result.masks is not None
    return image, crop_maps(trace), result


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", [(24, 32), (1, 1), (90, 1500), (1500, 90), (300, 401)])
def test_views_of_any_size(looked, view, size):
    image, maps, result = looked
    resized = cv2.resize(image, size[::-1])
    drawn = draw_view(resized, maps, view, result)
    picture = drawn.compose()
    assert picture.dtype == np.uint8
    assert picture.shape[0] > drawn.picture.shape[0]
    assert (picture[-2:] == 255).all()  # nothing touches the lower edge
    assert (picture[drawn.picture.shape[0] :, -2:] == 255).all()
    if view in ("overlay", "mask") and max(size) >= 160:
        assert drawn.picture.shape == resized.shape  # the photo's own size, in the corner
        np.testing.assert_array_equal(picture[: size[0], : size[1]], drawn.picture)


def test_tiny_photos_are_enlarged_by_a_whole_number(looked):
    assert draw_view(noise(24, 32), looked[1], "overlay").picture.shape == (120, 160, 3)


def test_views_leave_the_image_alone(looked):
    image, maps, result = looked
    before = image.copy()
    for view in VIEWS:
        draw_view(image, maps, view, result)
    np.testing.assert_array_equal(image, before)


def test_results_are_drawn_where_they_are_at_any_scale(looked):
    image, _, result = looked
    for scale in (1, 3):
        scene = np.zeros((image.shape[0] * scale, image.shape[1] * scale, 3), np.uint8)
        assert draw_results(scene, result) is scene
        x1, _, x2, y2 = (result.boxes.xyxy[0] * scale).round().int().tolist()
        y2 = min(y2, scene.shape[0] - 1)
        assert scene[y2, (x1 + x2) // 2].any()  # the lower edge of the best box
        outside = scene.copy()
        for box in (result.boxes.xyxy * scale).round().int().tolist():
            outside[max(box[1] - 40 * scale, 0) : box[3] + 3 * scale, max(box[0] - 120, 0) : box[2] + 120] = 0
        assert not outside.any()


@pytest.mark.parametrize("depths", [2, 10, 13, 40, 150])
def test_legends_name_both_ends(depths):
    palette = np.linspace(0, 255, depths)[:, None].repeat(3, 1).astype(np.uint8)
    legend = swatches("depth", dict(enumerate(palette)), 13)
    assert legend.shape[1] < 1200
    row = legend[-1]
    assert (row[0] == palette[0]).all()
    assert (palette[-1] == row).all(axis=1).any()
    assert gradient("confidence", palette, 13).shape[0] == legend.shape[0]


def test_blocks_wrap_and_are_not_cut():
    blocks = [np.zeros((10, width, 3), np.uint8) for width in (50, 60, 200)]
    page = with_blocks(np.full((20, 140, 3), 7, np.uint8), blocks, 10)
    assert (page == 0).all(axis=2).sum() == sum(block.shape[0] * block.shape[1] for block in blocks)
    assert (page[:20, :140] == 7).all()
    assert (page[:, -1] == 255).all()


def test_the_depth_of_several_layers_is_their_sum():
    coarse = RouteMap("b", np.array([[True, False]]), np.zeros((1, 2), np.float32), np.array([[2, 0]]), 2)
    depth, extent = total_depth([coarse, LAYER])
    assert extent == LAYER.extent
    np.testing.assert_array_equal(depth, LAYER.depth + np.array([[2, 2, 0, 0]]))
