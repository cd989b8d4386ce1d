"""Route maps are what the forward did, for every kind of model, of image and of file; and what it cost."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import OPEN
from helpers import routing_order, with_random_routers, write_vit_yaml
from PIL import Image
from ultralytics import RTDETR

from mod_vision.nn.attention_windows import window_slots
from mod_vision.routing import routed_layers
from mod_vision.viz.routes import crop_maps, route_maps, skipped_depth
from mod_vision.viz.traced import open_traced
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.letterbox import forward_letterboxed

IMGSZ = 160
PHOTOS = sorted((OPEN / "images" / "val").glob("*.jpg"))
SHIPPED = "yolo26n-mod-hybrid-seg.pt"


@pytest.fixture(scope="module")
def shipped():
    return load_model(SHIPPED)


def best_tokens(layer, logits, size):
    """The routed tokens by plain sorting, for a layer that selects in the whole map or in windows."""
    slots = window_slots(size, getattr(layer, "window", None), logits.device)
    place = {token: i for i, token in enumerate(routing_order(logits))}
    k = layer.plan.indices.shape[1] // len(slots)
    beyond = len(logits)
    chosen = {t for row in slots.tolist() for t in sorted(row, key=lambda t: place.get(t, beyond))[:k] if t < beyond}
    return np.isin(np.arange(len(logits)), list(chosen))


@pytest.mark.parametrize(
    "name", ["yolo26n-mod-hybrid-seg", "yolo11n-mod-attention", "yolo12n-mod-attention", "windows"]
)
def test_maps_follow_the_scores_that_the_routers_gave(name, photo, tmp_path):
    yolo = with_random_routers(write_vit_yaml(tmp_path, 3) if name == "windows" else f"{name}.yaml")
    seen = {}
    layers = dict(routed_layers(yolo.model))
    for layer_name, layer in layers.items():
        layer.router.register_forward_hook(lambda _, args, out, n=layer_name: seen.update({n: (out[0], args[1])}))
    square = cv2.resize(photo, (IMGSZ, IMGSZ))
    maps = route_maps(yolo, square, IMGSZ)
    assert [m.name for m in maps] == list(layers)
    for m in maps:
        logits, grid = seen[m.name]
        np.testing.assert_array_equal(m.kept, best_tokens(layers[m.name], logits, grid).reshape(grid))
        np.testing.assert_array_equal(m.score, logits.numpy().reshape(grid))


def test_maps_are_those_of_the_image_in_a_batch(shipped, photo):
    images = [cv2.resize(image, (IMGSZ, IMGSZ)) for image in (photo, photo[::-1].copy(), photo[:, ::-1].copy())]
    alone = [route_maps(shipped, image, IMGSZ) for image in images]
    rgb = np.stack([image[..., ::-1].transpose(2, 0, 1) for image in images])
    with torch.inference_mode():
        shipped.model.eval()(torch.from_numpy(rgb.copy()).float() / 255)
    for i, maps in enumerate(alone):
        for m, (_, layer) in zip(maps, routed_layers(shipped.model), strict=True):
            np.testing.assert_array_equal(m.kept, layer.plan.kept()[i].numpy())


def same_maps(model, images):
    first, *others = (route_maps(model, image, IMGSZ) for image in images)
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a.score, b.score)
            np.testing.assert_array_equal(a.kept, b.kept)
    return first


def test_gray_and_colour_agree(shipped, photo, tmp_path):
    gray = cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY)
    for name in ("8.png", "8.tif"):
        cv2.imwrite(str(tmp_path / name), gray)
    colour = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
    same_maps(shipped, [colour, gray, gray[..., None], Image.fromarray(gray), tmp_path / "8.png", tmp_path / "8.tif"])


def test_alpha_is_left_out(shipped, photo, tmp_path):
    alpha = np.dstack((photo, np.zeros(photo.shape[:2], np.uint8)))
    for name in ("a.png", "a.tif"):
        cv2.imwrite(str(tmp_path / name), alpha)
    pil = Image.fromarray(cv2.cvtColor(alpha, cv2.COLOR_BGRA2RGBA))
    same_maps(shipped, [photo, alpha, pil, tmp_path / "a.png", str(tmp_path / "a.tif")])


def test_sixteen_bits_keep_the_upper_eight(shipped, photo, tmp_path):
    deep = photo.astype(np.uint16) * 256 + 255
    for name in ("16.png", "16.tif"):
        cv2.imwrite(str(tmp_path / name), deep)
    same_maps(shipped, [photo, deep, np.dstack((deep, deep[..., 0])), tmp_path / "16.png", tmp_path / "16.tif"])


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_files_are_turned_as_their_exif_says(shipped, photo, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = Image.fromarray(photo[..., ::-1].copy())
    turned.save(tmp_path / "plain.png")
    turned.save(tmp_path / "turned.png", exif=exif)
    upright = np.rot90(photo, {3: 2, 6: 3, 8: 1}[orientation])
    file = tmp_path / "turned.png"
    maps = same_maps(shipped, [np.ascontiguousarray(upright), file, Image.open(file)])
    plain = route_maps(shipped, tmp_path / "plain.png", IMGSZ)
    assert maps[0].kept.shape != plain[0].kept.shape or (maps[0].kept != plain[0].kept).any()


def test_gflops_are_those_of_the_forward_and_its_twin(shipped, photo):
    from mod_vision.eval.cost.flops import executed_gflops

    model = open_traced(shipped, IMGSZ)
    trace = model.trace(photo)
    executed, dense = model.gflops(trace)
    assert executed == executed_gflops(shipped.model, image=trace.forward.batch)
    twin = load_model(SHIPPED)
    set_capacity(twin, 1.0)
    assert dense == executed_gflops(twin.model, image=trace.forward.batch) > executed


def test_gflops_follow_the_image_in_threshold_mode(photo):
    yolo = load_model(SHIPPED)
    for _, layer in routed_layers(yolo.model):
        layer.set_threshold(0.0)
    model = open_traced(yolo, IMGSZ)
    flat, rich = (model.trace(image) for image in (np.full_like(photo, 128), photo))
    assert skipped_depth(crop_maps(flat)) != skipped_depth(crop_maps(rich))
    assert model.gflops(flat)[0] != model.gflops(rich)[0]
    assert model.gflops(flat)[1] == model.gflops(rich)[1]


HUGE = """
import resource, sys
from mod_vision.viz.heatmap import heatmap
from mod_vision.yolo.run.images import read_image
from mod_vision.yolo.run.letterbox import forward_letterboxed
from mod_vision.yolo.model.loading import load_model

model, (small, huge, out) = load_model("yolo26n-mod-hybrid-seg.pt"), sys.argv[1:]
heatmap(model, small, 160, out, view="overlay", boxes=True, conf=0.1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
heatmap(model, huge, 160, out, view="overlay", boxes=True, conf=0.1)
print("KiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_huge_images_take_bounded_memory(photo, tmp_path):
    side = 8000
    cv2.imwrite(str(tmp_path / "huge.jpg"), cv2.resize(photo, (side, side), interpolation=cv2.INTER_NEAREST))
    words = [sys.executable, "-c", HUGE, str(PHOTOS[0]), str(tmp_path / "huge.jpg"), str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    more = int(done.stdout.rsplit("KiB", 1)[1]) * 1024
    assert more < 5 * side * side * 3  # the image, the overlay, the picture with its legend, and the file
    header = (tmp_path / "out" / "huge-overlay.png").read_bytes()[16:24]
    assert int.from_bytes(header[:4], "big") == side


def test_gflops_follow_every_capacity():
    """Two capacities with equally many tokens in the first block cost differently."""
    model = load_model("yolo26n-mod-hybrid.yaml")
    traced, image = open_traced(model, 96), np.zeros((96, 96, 3), np.uint8)
    costs = []
    for capacity in (0.5, [0.5, 0.5, 0.5, 0.1, 0.1, 0.1]):
        set_capacity(model, {"model.6": capacity})
        costs.append(traced.gflops(traced.trace(image))[0])
    assert costs[1] < costs[0]


def test_rtdetr_sees_the_image_stretched():
    """As its predictor does, which scales the boxes so."""
    net = RTDETR("rtdetr-l.yaml").model
    boxed = forward_letterboxed(net, np.zeros((40, 90, 3), np.uint8), 64).boxed
    assert boxed.size == (64, 64)
    assert boxed.valid == (0, 0, 64, 64)
