"""Route maps against what the forward did, and heat maps of images, folders and what can go wrong with them."""

import cv2
import numpy as np
import pytest
import torch

from mod_vision.resources import resource_dir
from mod_vision.routing import num_routed, routed_layers
from mod_vision.viz.heatmap import heatmap
from mod_vision.viz.routes import RouteMap, route_maps, skipped_share
from mod_vision.viz.views import draw_heatmap
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.images import read_image
from mod_vision.yolo.run.letterbox import forward_letterboxed

IMGSZ = 160
MODEL = "yolo26n-mod-hybrid.yaml"
PHOTOS = sorted((resource_dir("assets") / "open" / "images" / "val").glob("*.jpg"))
STEP = 1 / 512  # scores that are closer than this can tie


def untrained():
    torch.manual_seed(0)
    return load_model(MODEL)


@pytest.fixture(scope="module")
def model():
    return untrained()


@pytest.fixture
def square(photo):
    return cv2.resize(photo, (IMGSZ, IMGSZ))


@pytest.fixture
def wide(photo):
    return cv2.resize(photo, (160, 100))  # padded to 160 x 128: rows 14 to 114 are the image


@pytest.fixture
def changed(model):
    """Tokens that a stage changed in the last forward, seen from its input and output, not from its plan."""
    seen = {}

    def watch(name):
        def hook(stage, args, out):
            x = stage.proj(args[0])
            seen[name] = (out - (x + stage.pos(x)))[0].abs().amax(0).gt(0).numpy()

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in routed_layers(model.model)]
    yield seen
    for handle in handles:
        handle.remove()


def test_maps_are_what_the_forward_did(model, square, changed):
    maps = route_maps(model, square, IMGSZ)
    assert [(m.name, m.kept.shape, m.blocks) for m in maps] == [("model.6", (10, 10), 6), ("model.8", (5, 5), 4)]
    for m in maps:
        assert m.kept.dtype == bool
        assert m.score.dtype == np.float32
        np.testing.assert_array_equal(m.kept, changed[m.name])
        np.testing.assert_array_equal(m.depth, m.blocks * m.kept)
        assert m.score[m.kept].min() >= m.score[~m.kept].max() - STEP
        assert m.kept.sum() == num_routed(m.kept.size, 0.5)
        assert m.extent == (0.0, 0.0, 1.0, 1.0)


def test_padding_is_removed(model, wide, changed):
    fine, coarse = route_maps(model, wide, IMGSZ)
    assert fine.kept.shape == fine.score.shape == fine.depth.shape == (6, 10)
    np.testing.assert_array_equal(fine.kept, changed["model.6"][1:7])
    assert fine.extent == pytest.approx((0.02, 0.0, 0.96, 1.0))
    assert coarse.kept.shape == (4, 5)
    assert coarse.extent == pytest.approx((-0.14, 0.0, 1.28, 1.0))
    assert fine.kept.mean() == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize("shape", [(1, 1), (3, 400), (400, 3)])
def test_images_thinner_than_a_patch(model, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    maps = route_maps(model, image, IMGSZ)
    assert all(m.kept.size for m in maps)
    assert draw_heatmap(image, maps).dtype == np.uint8


def test_depth_follows_falling_capacities(square):
    model = untrained()
    set_capacity(model, [0.5, 0.25])
    for m in route_maps(model, square, IMGSZ):
        assert set(np.unique(m.depth)) == {0, m.blocks // 2, m.blocks}
        assert (m.depth == m.blocks).sum() == num_routed(m.depth.size, 0.25)
        assert m.score[m.depth == m.blocks].min() >= m.score[m.depth == m.blocks // 2].max() - STEP


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros((8, 8, 3)),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_image(image):
    with pytest.raises(ValueError, match="uint8 or uint16, gray, BGR or BGRA"):
        read_image(image)


def test_forward_leaves_the_mode(square):
    model = untrained()
    model.model.train()
    boxed = forward_letterboxed(model.model, square, 150)
    assert model.model.training
    assert boxed.boxed == ((160, 160), (0, 0, 160, 160))
    with pytest.raises(ValueError, match="imgsz"):
        forward_letterboxed(model.model, square, 0)


def test_missing_and_foreign_models(tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    with pytest.raises(
        FileNotFoundError, match=r"yolo26n\.pt does not exist\. Download it first: yolo predict model=yolo26n\.pt"
    ):
        load_model(tmp_path / "yolo26n.pt")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_model("nowhere.yaml")
    with pytest.raises(ValueError, match="neither a checkpoint"):
        load_model("model.onnx")
    with pytest.raises(ValueError, match=r"broken\.pt is damaged or no checkpoint"):
        load_model(tmp_path / "broken.pt")


def test_nothing_routed(square):
    model = untrained()
    set_capacity(model, 1.0)
    with pytest.raises(ValueError, match=r"nothing is routed: all capacities are 1; .*mod-vision fit"):
        route_maps(model, square, IMGSZ)
    with pytest.raises(ValueError, match="nothing is routed: this model has no routed layer; `mod-vision convert`"):
        route_maps("yolo26n.yaml", square, IMGSZ)


@pytest.mark.parametrize(("height", "width"), [(30, 40), (1200, 300), (100, 1500), (1, 1)])
def test_picture(height, width):
    image = np.full((height, width, 3), 200, np.uint8)
    kept = np.eye(4, dtype=bool)
    maps = [RouteMap(f"model.{i}.with.a.long.name", kept, kept.astype(np.float32), 6 * kept, 6) for i in range(3)]
    picture = draw_heatmap(image, maps, "page")
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[0] < 2500
    assert picture.shape[1] < 2500
    margin = np.concatenate([picture[:, -8:].reshape(-1, 3), picture[-8:].reshape(-1, 3)])
    assert (margin == 255).all()  # no text is cut by the edge
    with pytest.raises(ValueError, match="no route map"):
        draw_heatmap(image, [])


def test_skipped_patches_are_darker():
    image = np.full((360, 360, 3), 200, np.uint8)
    kept = np.array([[True, False], [False, True]])
    layer = RouteMap("model.6", kept, kept.astype(np.float32), 2 * kept, 2)
    picture = draw_heatmap(image, [layer], "page").astype(int)  # the confidence is painted all over
    photo_pixels = (picture == 200).all(-1).sum()
    assert photo_pixels == pytest.approx(360 * 360 * 1.5, rel=0.02)  # the photo, and the kept half of the layer
    assert skipped_share(layer) == 0.5


def test_folder_with_a_corrupt_image(model, tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "runs" / "out"
    source.mkdir()
    for path in PHOTOS[:2]:
        (source / path.name).write_bytes(path.read_bytes())
    (source / "broken.jpg").write_bytes(b"no image")
    (source / "empty.png").write_bytes(b"")
    (source / "notes.txt").write_text("not an image, and not named as one")
    pictures = heatmap(model, source, IMGSZ, out)
    assert [p.name for p in pictures] == [f"{p.stem}-mask.png" for p in PHOTOS[:2]]
    assert sorted(out.iterdir()) == sorted(pictures)  # no temporary file is left
    assert all(cv2.imread(str(p)).shape[2] == 3 for p in pictures)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("]")[0] for line in lines[:4]] == ["[1/4", "[2/4", "[3/4", "[4/4"]
    assert sum("is not an image" in line for line in lines) == 2
    assert lines[-2].startswith("mean of 2 images: skipped model.6 ")
    assert str(out) in lines[-2]


def test_images_of_one_name_get_a_picture_each(model, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.jpg").write_bytes(PHOTOS[0].read_bytes())
    pictures = heatmap(model, str(tmp_path / "*" / "*.jpg"), IMGSZ, tmp_path / "out")
    assert [p.name for p in pictures] == ["same-mask.png", "same-2-mask.png"]


def test_no_image_to_read(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="no image"):
        heatmap(model, tmp_path, IMGSZ, tmp_path / "out")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of the 1 files"):
        heatmap(model, tmp_path, IMGSZ, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        route_maps(model, tmp_path / "missing.jpg", IMGSZ)


def test_folder_that_cannot_be_written(model, tmp_path):
    (tmp_path / "file").write_text("a file where the folder should go")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="cannot write to the output folder") as caught:
            heatmap(model, PHOTOS[0], IMGSZ, out)
        assert str(out) in str(caught.value)


def test_picture_that_cannot_be_written(model, tmp_path):
    (tmp_path / f"{PHOTOS[0].stem}-mask.png").mkdir()
    with pytest.raises(OSError, match="cannot write to the folder"):
        heatmap(model, PHOTOS[0], IMGSZ, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1  # the temporary file is gone
