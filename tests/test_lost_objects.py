"""What windows lose, and routers of windows that learn: in numbers, and by `fit` and `val`."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from helpers import attempt, write_windows_yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics import YOLO

from mod_vision.cli.main import main
from mod_vision.eval.cost.flops import executed_gflops
from mod_vision.eval.cost.image_cost import ImageCosts
from mod_vision.routing.losses import cell_loss
from mod_vision.routing.lost_objects import LostObjects, Objects, elsewhere, shown_share
from mod_vision.routing.placing import plan_windows
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.objects import object_cells
from mod_vision.yolo.train.calibration import calibrate_thresholds
from mod_vision.yolo.train.fit import fit_routing
from mod_vision.yolo.train.fit_windows import fit_windows
from mod_vision.yolo.train.random_parts import augmented, part_at
from mod_vision.yolo.train.windows_loss import windows_loss

GRID = (6, 8)


def objects(boxes: list[list[float]], images: list[int], names: list[str] | None = None) -> Objects:
    corners = torch.tensor(boxes).view(-1, 4)
    areas = (corners[:, 2:] - corners[:, :2]).prod(1)
    return Objects(corners, areas, torch.tensor(images, dtype=torch.long), names or ["car"] * len(boxes))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 4), st.integers(1, 4), st.booleans())
def test_the_share_of_a_box_that_a_window_shows(seed, k, side, adaptive):
    """Like a count of its pixels."""
    torch.manual_seed(seed)
    plan = plan_windows(torch.randn(2, 48), GRID, (side, side), k, least=1.0 if adaptive else None)
    low = torch.randint(0, 150, (5, 2))
    boxes = torch.cat((low, low + torch.randint(1, 90, (5, 2))), 1).float()
    images = torch.randint(0, 2, (5,))
    shares = shown_share(plan, objects(boxes.tolist(), images.tolist()))
    for box, image, share in zip(boxes.long().tolist(), images.tolist(), shares.tolist(), strict=True):
        best = 0.0
        for n in range(int(plan.counts()[image])):
            seen = torch.zeros(GRID[0] * 32, GRID[1] * 32)
            y, x = (plan.corners[image, n] * 32).tolist()
            seen[y : y + side * 32, x : x + side * 32] = 1
            area = (box[2] - box[0]) * (box[3] - box[1])
            best = max(best, float(seen[box[1] : box[3], box[0] : box[2]].sum()) / area)
        assert share == pytest.approx(best, abs=1e-5)


def test_objects_are_counted_by_size_and_class():
    logits = torch.full((2, 48), -9.0)
    logits[0, 0] = logits[1, 47] = 9.0  # one corner of each
    plan = plan_windows(logits, GRID, (2, 2), 1)
    found = objects([[0, 0, 20, 20], [0, 0, 40, 40], [200, 100, 220, 120]], [0, 1, 1], ["car", "bus", "car"])
    lost = LostObjects()
    lost.update(plan, found, {"oracle": logits.flip(0)})
    result = lost.result()
    assert result["objects"] == {"all": 3, "small": 2, "class car": 2, "medium": 1, "class bus": 1}
    assert result["lost"]["router"] == {"all": 2 / 3, "small": 0.5, "class car": 0.5, "medium": 1, "class bus": 1}
    assert result["lost"]["oracle"]["class bus"] == 0
    assert result["windows_median"] == 1
    assert result["computed_share"] == pytest.approx(4 / 48)
    assert "66.7%" in lost.table()
    lost.reset()
    assert not lost.result()["objects"]


def test_other_routers_have_as_many_windows():
    plan = plan_windows(torch.tensor([[9.0] * 4 + [-9.0] * 44, [-9.0] * 48]), GRID, (2, 2), 6, least=0.5)
    other = elsewhere(plan, torch.randn(2, 48))
    assert other.counts().tolist() == plan.counts().tolist() == [2, 0]


def test_a_cell_of_an_object_weighs_more():
    weights = torch.zeros(1, 4)
    weights[0, 0] = 1.0
    sure = torch.tensor([[9.0, -9.0, -9.0, -9.0]])
    missed, vain = sure.clone(), sure.clone()
    missed[0, 0], vain[0, 1] = -9.0, 9.0
    assert float(cell_loss(sure, weights)) < 0.01
    assert float(cell_loss(missed, weights)) > 5 * float(cell_loss(vain, weights)) > 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 3))
def test_cells_of_a_class_are_those_of_its_objects_alone(seed, n, images):
    torch.manual_seed(seed)
    head = head_of(YOLO("yolo26n-mod.yaml").model)
    head.nc = 4
    batch = {"img": torch.zeros(images, 3, 96, 128), "bboxes": torch.rand(n, 4) * 0.8 + 0.1}
    batch |= {"batch_idx": torch.randint(0, images, (n,)).float(), "cls": torch.randint(0, 4, (n, 1)).float()}
    found = object_cells(batch, (3, 4), head, by_class=True)
    assert found.shape == (images, 4, 3, 4)
    for c in range(4):
        own = batch["cls"].flatten() == c
        alone = {**batch, **{key: batch[key][own] for key in ("bboxes", "batch_idx", "cls")}}
        assert torch.equal(found[:, c], object_cells(alone, (3, 4), head))
    assert torch.equal(found.amax(1), object_cells(batch, (3, 4), head))


def test_the_loss_of_a_router_counts_classes():
    head = head_of(YOLO("yolo26n-mod.yaml").model)
    head.nc = 2
    batch = {"img": torch.zeros(1, 3, 64, 64), "bboxes": torch.tensor([[0.25, 0.25, 0.1, 0.1]])}
    batch |= {"batch_idx": torch.zeros(1), "cls": torch.tensor([[1.0]])}
    sure = torch.full((1, 3, 4), -9.0)
    sure[0, 0, 0] = sure[0, 2, 0] = 9.0  # an object, of class 1
    other = sure[:, [0, 2, 1]]
    losses = [float(windows_loss(said[:, 0], said[:, 1:], batch, (2, 2), head)) for said in (sure, other)]
    assert losses[0] < 0.01 < 1 < losses[1]
    assert float(windows_loss(sure[:, 0], None, batch, (2, 2), head)) < 0.01


def test_a_mirrored_batch_has_mirrored_boxes():
    torch.manual_seed(1)
    images = torch.zeros(16, 3, 32, 64)
    images[:, :, 8:16, 8:16] = 0.5
    boxes = torch.tensor([[12 / 64, 12 / 32, 8 / 64, 8 / 32]]).repeat(16, 1)
    batch = augmented({"img": images, "bboxes": boxes, "batch_idx": torch.arange(16.0)})
    sides = set()
    for image, box in zip(batch["img"], batch["bboxes"], strict=True):
        x = round(float(box[0]) * 64)
        assert float(image[0, 12, x]) > 0.3
        sides.add(x)
    assert sides == {12, 52}


@pytest.mark.parametrize("factor", [0.6, 0.75, 1.0, 1.2])
def test_a_part_of_a_batch_has_its_boxes(factor):
    """Where a square is in the part, there is its box, cut at the border; to a px where the image is scaled."""
    blur = 0.0 if factor == 1 else 1.0
    for seed in range(20):
        torch.manual_seed(seed)
        images = torch.zeros(2, 3, 128, 192)
        images[0, :, 40:80, 50:90] = images[1, :, 100:120, 10:30] = 1.0
        boxes = torch.tensor([[70 / 192, 60 / 128, 40 / 192, 40 / 128], [20 / 192, 110 / 128, 20 / 192, 20 / 128]])
        batch = {"img": images, "bboxes": boxes, "batch_idx": torch.arange(2.0), "cls": torch.zeros(2, 1)}
        part = part_at(batch, factor, 96, 32)
        h, w = part["img"].shape[2:]
        assert h == min(96, 32 * round(128 * factor / 32))
        assert w == min(96, 32 * round(192 * factor / 32))
        seen = {int(i): b for i, b in zip(part["batch_idx"], part["bboxes"], strict=True)}
        for i in range(2):
            ys, xs = (part["img"][i, 0] > 0.5).nonzero(as_tuple=True)
            if i not in seen:
                assert not len(ys)
                continue
            (cx, cy), (bw, bh) = (seen[i].view(2, 2) * torch.tensor([w, h])).tolist()
            if not len(ys):
                assert min(bw, bh) <= blur
                continue
            assert (cx - bw / 2, cx + bw / 2) == pytest.approx((int(xs.min()), int(xs.max()) + 1), abs=blur + 1e-3)
            assert (cy - bh / 2, cy + bh / 2) == pytest.approx((int(ys.min()), int(ys.max()) + 1), abs=blur + 1e-3)


def test_parts_of_images_of_bytes_are_those_of_images_in_unit():
    """Data sets give bytes, which are scaled as they are, trainings numbers in [0, 1]: they differ by rounding."""
    images = torch.randint(0, 256, (2, 3, 128, 192), dtype=torch.uint8)
    batch = {"bboxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]]), "batch_idx": torch.zeros(1), "cls": torch.zeros(1, 1)}
    for factor in (0.7, 1.0, 1.2):
        parts = []
        for known in (images, images.float() / 255):
            torch.manual_seed(3)
            parts.append(augmented(part_at({**batch, "img": known}, factor, 96, 32)))
        assert parts[0]["img"].dtype == torch.float32
        assert parts[0]["img"].shape == parts[1]["img"].shape
        assert float((parts[0]["img"] - parts[1]["img"]).abs().max()) < 2 / 255
        assert torch.equal(parts[0]["bboxes"], parts[1]["bboxes"])


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> Path:
    """Images of noise, each with a bright square somewhere: what a router can learn in seconds."""
    folder, rng = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True)
        for n in range(count):
            image = rng.integers(0, 80, (256, 320, 3), dtype=np.uint8)
            x, y = int(rng.integers(0, 300)), int(rng.integers(0, 236))
            image[y : y + 20, x : x + 20] = 255
            cv2.imwrite(str(folder / f"images/{split}/{n}.png"), image)
            line = f"0 {(x + 10) / 320} {(y + 10) / 256} {20 / 320} {20 / 256}"
            (folder / f"labels/{split}/{n}.txt").write_text(line)
    data = {"path": str(folder), "train": "images/train", "val": "images/val", "names": {0: "square"}}
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    return folder / "data.yaml"


@pytest.fixture(scope="module", params=["look", "scout", "stem"])
def fitted(request, tmp_path_factory, squares) -> Path:
    """A model whose router was fitted, and nothing else."""
    folder = tmp_path_factory.mktemp("fitted")
    entry = {"entry": 5} if request.param == "stem" else {}
    torch.manual_seed(0)
    yolo = YOLO(str(write_windows_yaml(folder, nc=1, size=64, capacity=0.1, router=request.param, **entry)))
    before = {key: value.clone() for key, value in yolo.model.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mod_vision.yolo.train.fit.fit_windows", partial(fit_windows, steps=120))
        fit_routing(yolo, str(squares), 0.1, 320)
    changed = {key for key, value in yolo.model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(".router." in key for key in changed)
    yolo.save(folder / "fitted.pt")
    return folder / "fitted.pt"


def test_a_fitted_router_finds_what_a_new_one_does_not(tmp_path, squares, fitted):
    """The network stays as it is; `val` shows it, beside routers that know nothing or all."""
    words = [f"model={fitted}", f"data={squares}", "imgsz=320", "threads=1", f"out={tmp_path / 'o'}"]
    assert main(["val", *words]) == 0
    found = json.loads((tmp_path / "o" / "evaluation.json").read_text())["windows"]
    assert found["objects"]["all"] == 8
    lost = {name: groups["all"] for name, groups in found["lost"].items()}
    assert lost["oracle"] == 0
    assert lost["router"] <= 0.25 < lost["random"]
    assert found["computed_share"] == pytest.approx(2 * 4 / 99)  # of 9 x 11 cells, two windows of 2 x 2


def test_thresholds_keep_a_budget(squares, fitted):
    """Images differ in the number of windows, none is an answer too, and costs are counted image by image."""
    yolo = load_model(fitted)
    shares = calibrate_thresholds(yolo, str(squares), 0.2, 320)["model." + str(head_of(yolo.model).entry.i)]
    assert 0 < sum(shares) / len(shares) <= 0.2
    net, entry = yolo.model.eval(), head_of(yolo.model).entry
    photos = [cv2.imread(str(squares.parent / f"images/val/{n}.png"))[:, :, ::-1].copy() for n in range(3)]
    images = torch.stack([torch.from_numpy(photo).permute(2, 0, 1) for photo in photos]) / 255
    images[1] = 0.2
    with torch.no_grad():
        net(images)
        counts = entry.plan.counts().tolist()
        assert counts[0] > 0
        costs = ImageCosts()
        costs.update(net, images)
        alone = [executed_gflops(net, image=images[i : i + 1]) for i in range(3)]
        assert costs.result()[0] == pytest.approx(alone)
        entry.set_threshold(1e6)
        assert net(images)[0].numel() == 0
        assert executed_gflops(net, image=images[:1]) < alone[0]


def test_thresholds_of_routers_whose_scores_do_not_compare(tmp_path, squares):
    yolo = YOLO(str(write_windows_yaml(tmp_path, nc=1, size=64, capacity=0.2, router="random")))
    _, told = attempt(lambda: calibrate_thresholds(yolo, str(squares), 0.2, 320))
    assert "thresholds need scores that compare, RandomWindowRouter has none" in told


def test_val_tells_of_a_router_that_was_never_trained(tmp_path, squares, capfd):
    words = [
        f"model={write_windows_yaml(tmp_path, nc=1, size=64)}",
        f"data={squares}",
        "imgsz=320",
        f"out={tmp_path / 'o'}",
    ]
    assert main(["val", *words]) == 0
    out = "".join(capfd.readouterr())
    assert out.count("the router of the windows was never trained") == 1


@pytest.mark.parametrize("train", ["images/train", "images/nothing-there", None])
def test_val_needs_no_training_images(tmp_path, squares, train):
    """Nor whole label files of them: `prior` is left out, or goes by what can be read."""
    data = yaml.safe_load(squares.read_text()) | {"train": train or "images/val"}
    folder = tmp_path / "copy"
    shutil.copytree(squares.parent, folder)
    (folder / "labels/train/0.txt").write_text("0 abc 0.5 0.1 0.1\n0 nan 0.5 0.1 0.1\n0 0.5 0.5 0.1 0.1")
    (folder / "data.yaml").write_text(yaml.safe_dump(data | {"path": str(folder)}))
    file = write_windows_yaml(tmp_path, nc=1, size=64)
    words = [f"model={file}", f"data={folder / 'data.yaml'}", "imgsz=320", "threads=1", f"out={tmp_path / 'o'}"]
    assert main(["val", *words]) == 0
    lost = json.loads((tmp_path / "o" / "evaluation.json").read_text())["windows"]["lost"]
    assert ("prior" in lost) == (train != "images/nothing-there")


def test_fit_keeps_the_capacity_and_tells_of_windows_that_nothing_is_worth(tmp_path, squares, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mod_vision.yolo.train.fit.fit_windows", partial(fit_windows, steps=2))
    YOLO(str(write_windows_yaml(tmp_path, nc=1, size=64, capacity=0.2))).save("a.pt")
    assert main(["fit", "model=a.pt", f"data={squares}", "imgsz=320", "out=b.pt"]) == 0
    assert load_model("b.pt").model.model[0].capacities == (0.2,)
    assert all(p.grad is None for p in load_model("b.pt").model.parameters())
    assert main(["fit", "model=a.pt", f"data={squares}", "imgsz=320", "thresholds=True", "out=c.pt"]) == 0
    said = capsys.readouterr().out
    assert "the router of the windows was never trained" in said
    assert "no image is worth a window at this budget" in said
