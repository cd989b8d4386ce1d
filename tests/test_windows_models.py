"""Any Ultralytics model on windows with its own weights: bit for bit dense at capacity 1, each image as if alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import randomise
from torch import nn
from ultralytics.nn import tasks
from window_pairs import described, pair, tensors

from mod_vision import set_capacity
from mod_vision.routing.labels import labelled
from mod_vision.routing.window_routers import SURE
from mod_vision.routing.windows import MARGIN
from mod_vision.yolo.model.windows import head_of

MODELS = (
    *("yolo26n", "yolo26n-seg", "yolo26n-pose", "yolo26n-obb", "yolo26n-p2", "yolo26n-p6"),
    *("yolov8n", "yolov8n-p6", "yolov9t", "yolov10n", "yolo11n-seg", "yolo11n-pose", "yolo11n-obb", "yolo12n"),
)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_weights_of_the_dense_model_fit_and_capacity_one_is_it(name):
    """Bit for bit, and at less it is not; a window as large as the image gives what the dense model gives."""
    routed, dense = pair(name)
    names = {key for key in routed.state_dict() if ".router." not in key}
    assert names == dense.state_dict().keys()
    x = torch.rand(2, 3, 256, 320)
    expected = tensors(dense(x))
    less = tensors(routed(x))[0]
    assert less.shape[0] == 2
    assert less.shape != expected[0].shape or not torch.allclose(less, expected[0])
    entry = head_of(routed).entry
    entry.window = 640
    torch.testing.assert_close(tensors(routed(x)[0])[0], expected[0], rtol=1e-4, atol=1e-3)
    set_capacity(routed, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(tensors(routed(x)), expected, strict=True))
    assert entry.plan is None


@pytest.mark.parametrize("name", ["yolo26n", "yolo11n-seg"])
@pytest.mark.parametrize(
    "windows", [{"objectness": 0.25}, {"coarse": 0.25}, {"router": "stem", "entry": 5}, {"router": "scout"}]
)
@torch.no_grad()
def test_a_batch_is_its_images(name, windows):
    """Fixed and adaptive, each image as if it were alone; fused too."""
    routed, _ = pair(name, **windows)
    routed = routed.double().fuse(verbose=False)
    entry = head_of(routed).entry
    for parameter in (p for key, p in entry.router.named_parameters() if p.ndim > 1):
        parameter.normal_(std=0.3)
    x = torch.rand(3, 3, 192, 256, dtype=torch.float64)
    x[1] = 114 / 255  # nothing but padding
    for least in (None, 3.0, 1e9):
        entry.threshold = least
        together = routed(x)
        for i in range(3):
            alone, mine = (found(tensors(y)[0][n], name) for y, n in ((routed(x[i : i + 1])[0], 0), (together[0], i)))
            n = min(len(alone), len(mine))
            torch.testing.assert_close(alone[:n], mine[:n])


def found(y: torch.Tensor, name: str) -> torch.Tensor:
    """Detections of an image, the best first, without those that are nothing."""
    y = y if "26" in name else y.T
    best = y[:, 4] if "26" in name else y[:, 4:7].amax(1)
    order = best.argsort(descending=True, stable=True)
    return y[order[best[order] > 1e-6]]


def convolutions() -> dict[str, Any]:
    """A network of small reach: what a position reads lies within 52 px of it."""
    rows = [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]]]
    return {"nc": 2, "backbone": rows, "head": [[[2], 1, "Detect", ["nc"]]]}


CROWDED = [
    *(("yolo26n", {}), ("yolo26n-seg", {}), ("yolov8n", {"coarse": 0.25}), ("yolo11n-obb", {})),
    *(("yolo26n", {"router": "stem", "entry": 5}), ("yolo11n-seg", {"router": "stem", "entry": 5})),
]


@pytest.mark.parametrize(("name", "windows"), CROWDED)
@torch.no_grad()
def test_crowded_images_are_run_as_a_whole(name, windows):
    """An image that needs too many windows gives what the dense model gives, alone and in any batch."""
    routed, dense = pair(name, **windows)
    entry = head_of(routed).entry
    for parameter in (p for p in entry.router.parameters() if p.ndim > 1):
        parameter.normal_(std=0.3)
    x = torch.rand(3, 3, 256, 384)
    x[1] = 114 / 255  # nothing but padding
    x[2, :, :, 128:] = 114 / 255
    routed(x)
    [*entry.router.parameters()][-1].sub_(entry.plan.logits[0].mean())  # about half of the cells are worth something
    entry.set_threshold(0.1)
    alone = [detections(routed(image[None])) for image in x]
    routed(x)
    shares = entry.plan.shares()
    assert len(set(shares.tolist())) > 1, "images must differ"
    entry.crowded = float(shares.max())
    whole = shares >= entry.crowded
    together = detections(routed(x))
    assert torch.equal(entry.plan.whole, whole)
    assert torch.equal(entry.plan.shares(), shares.masked_fill(whole, 1.0))
    assert entry.plan.kept()[whole].all()
    for i, image in enumerate(x):
        one = detections(routed(image[None]))
        expected = detections(dense(image[None])) if whole[i] else alone[i]
        torch.testing.assert_close(one, expected, rtol=0, atol=0)
        mine, own = found(together[i], name), found(one[0], name)
        n = min(len(mine), len(own))
        assert bool(n) == (i != 1), "only padding shows nothing"
        torch.testing.assert_close(mine[:n], own[:n], rtol=1e-3, atol=1e-3)
    set_capacity(routed, 0.25)
    routed(x)
    assert entry.plan.whole is None, "a fixed number of windows stays fixed"


def detections(out: Any) -> torch.Tensor:
    """The detections of an output."""
    return tensors(out)[0]


@torch.no_grad()
def test_a_window_that_holds_all_that_a_position_reads_gives_its_dense_value():
    reach = 56
    dense = randomise(tasks.DetectionModel(convolutions(), verbose=False)).double().eval()
    d = convolutions() | {"mod": {"windows": {"size": 192, "capacity": 0.6, "router": "random"}}}
    routed = tasks.DetectionModel(d, verbose=False).double().eval()
    routed.load(dense, verbose=False)
    routed, dense = routed.double(), dense.double()  # loading casts both
    x = torch.rand(2, 3, 320, 384, dtype=torch.float64)
    expected = dense(x)[0]
    found = routed(x)[0]
    plan = head_of(routed).windows
    assert plan.width == 2
    deep = plan.owned((8,), reach).flatten(1)
    assert deep.sum() > 200
    assert not torch.allclose(found, expected.gather(2, plan.positions((8,)).flatten(1)[:, None].expand_as(found)))
    for i in range(2):
        at = plan.positions((8,))[i].flatten()[deep[i]]
        torch.testing.assert_close(found[i][:, deep[i]], expected[i][:, at])
    silent = ~plan.owned((8,), MARGIN).flatten(1)
    assert float(found[:, 4:].amax(1)[silent].max()) < 1e-6


@pytest.mark.parametrize(("objectness", "doubt"), [(0.25, 0.0), (1.0, 0.0), (0.5, 0.8)])
@torch.no_grad()
def test_objectness_changes_the_odds_by_the_probability_of_the_cell(objectness, doubt):
    """They stay where the router doubts as much as it does of objects."""
    routed, _ = pair("yolov8n", objectness=objectness, doubt=doubt)
    routed = routed.double()
    nn.init.normal_(head_of(routed).entry.router.head[-1].weight, std=50.0)
    x, head = torch.rand(2, 3, 256, 320, dtype=torch.float64), head_of(routed)
    x[..., 100:] = 0
    found = routed(x)[0]
    head.objectness = 0.0
    plain, plan = routed(x)[0], head.windows
    assert torch.equal(found[:, :4], plain[:, :4]), "boxes stay"
    cells = (plan.centres((8, 16, 32)) * torch.tensor([8] * 256 + [16] * 64 + [32] * 16).repeat(plan.width) / 32).long()
    for i in range(2):
        own = plan.owned((8, 16, 32))[i].flatten()
        of_cell = plan.classes.view(2, -1, *plan.size)[i, :, cells[i, 1], cells[i, 0]].sigmoid()[:, own]
        assert of_cell.max() - of_cell.min() > 0.1
        assert (of_cell.amax(0) - of_cell.amin(0)).max() > 0.1, "each class has its own"
        odds = torch.log(plain[i, 4:, own] / (1 - plain[i, 4:, own])) + objectness * (of_cell.log() + doubt)
        torch.testing.assert_close(found[i, 4:, own], odds.sigmoid(), atol=1e-6, rtol=1e-3)


@torch.no_grad()
def test_what_no_router_was_asked_about_keeps_its_score():
    """As where something moved before a still camera."""
    routed, _ = pair("yolov8n", objectness=0.5, doubt=0.8)
    x, head = torch.rand(1, 3, 256, 320), head_of(routed)
    sure = torch.full((1, 1, 80), SURE)
    with head.entry.windows_at(torch.tensor([[[1, 2]]]), sure):
        found = routed(x)[0]
        head.objectness = 0.0
        torch.testing.assert_close(found, routed(x)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("router", ["oracle", "random"])
@torch.no_grad()
def test_routers_that_do_not_guess_have_no_objectness(router):
    """Or labels would decide what is found, not only where the network looks."""
    found = []
    for objectness in (0.0, 0.25):
        torch.manual_seed(0)
        routed, _ = pair("yolov8n", router=router, objectness=objectness)
        torch.manual_seed(0)
        x = torch.rand(1, 3, 256, 320)
        with labelled(lambda size: (torch.arange(80).view(1, *size) == 33).float()):
            found.append(routed(x)[0])
    assert torch.equal(*found)


@torch.no_grad()
def test_masks_of_a_window_are_those_of_the_dense_model():
    """Prototypes come back to the map of the image: a window as large as it gives the dense ones."""
    routed, dense = pair("yolo26n-seg")
    x = torch.rand(1, 3, 192, 256)
    (_, proto), _ = routed(x)
    plan = head_of(routed).windows
    (_, whole), _ = dense(x)
    assert proto.shape == whole.shape
    skipped = ~plan.kept().repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert float(proto.abs().amax(1)[skipped].max()) == 0
    assert float(proto.abs().amax(1)[~skipped].min()) > 0
    head_of(routed).entry.window = 640
    torch.testing.assert_close(routed(x)[0][1], whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("router", ["look", "scout", "stem", "density", "prior", "random"])
@pytest.mark.parametrize("entry", [1, 5])
@torch.no_grad()
def test_every_router_goes_with_every_entry(router, entry):
    """Windows that cover the image give what the dense model gives."""
    routed, dense = pair("yolo26n", router=router, entry=entry, size=640, coarse=0.25 if router == "density" else 0)
    head_of(routed).coarse = 0.0 if router != "density" else 0.25
    x = torch.rand(2, 3, 192, 256)
    assert routed(x)[0].shape == dense(x)[0].shape
    assert head_of(routed).windows.size == (6, 8)
    if router != "density":
        torch.testing.assert_close(routed(x)[0], dense(x)[0], rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_gray_images():
    for router in ("look", "scout"):
        d = described("yolo26n", size=64, router=router)
        assert tasks.DetectionModel(d, ch=1, verbose=False).eval()(torch.rand(1, 1, 192, 192))[0].shape[0] == 1


@torch.no_grad()
def test_embeddings_are_of_the_whole_image():
    routed, dense = pair("yolo26n", coarse=0.25)
    x = torch.rand(2, 3, 192, 256)
    for mine, expected in zip(routed.predict(x, embed=[9]), dense.predict(x, embed=[9]), strict=True):
        assert torch.equal(mine, expected)
