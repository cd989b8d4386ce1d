"""Any Ultralytics model on windows: its own weights, bit for bit dense at capacity 1, and plain `yolo` around it."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import randomise
from helpers import attempt, make_batch, make_box_batch, read_csv, run_python, write_windows_yaml
from torch import nn
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.nn import tasks
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import ModelEMA

from mod_vision import set_capacity
from mod_vision.routing.finite import check_finite
from mod_vision.routing.labels import labelled
from mod_vision.routing.window_routers import CellHead
from mod_vision.routing.windows import MARGIN
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.train.fit_windows import fit_windows

KINDS = {"segment": tasks.SegmentationModel, "pose": tasks.PoseModel, "obb": tasks.OBBModel}
MODELS = (
    *("yolo26n", "yolo26n-seg", "yolo26n-pose", "yolo26n-obb", "yolo26n-p2", "yolo26n-p6"),
    *("yolov8n", "yolov8n-p6", "yolov9t", "yolov10n", "yolo11n-seg", "yolo11n-pose", "yolo11n-obb", "yolo12n"),
)


def described(name: str, **windows: Any) -> dict[str, Any]:
    d = tasks.yaml_model_load(f"{name}.yaml")
    d["nc"] = 3
    return d | ({"mod": {"windows": {"size": 128, **windows}}} if windows else {})


def made(d: dict[str, Any]) -> Any:
    model = KINDS.get(tasks.guess_model_task(d), tasks.DetectionModel)(copy.deepcopy(d), verbose=False)
    model.args = get_cfg()
    model.end2end = bool(d.get("end2end")) or "v10Detect" in str(d["head"])
    return model


def pair(name: str, **windows: Any) -> tuple[Any, Any]:
    """A model on windows and the dense one, with the same weights."""
    dense = randomise(made(described(name))).eval()
    routed = made(described(name, **{"capacity": 0.25, **windows})).eval()
    routed.load(dense, verbose=False)
    return routed, dense


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, dict):
        value = list(value.values())
    parts = value if type(value) in (list, tuple) else ()
    return [value] if isinstance(value, torch.Tensor) else [t for part in parts for t in tensors(part)]


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


@pytest.mark.parametrize("objectness", [0.25, 1.0])
@torch.no_grad()
def test_objectness_lowers_the_odds_by_the_probability_of_the_cell(objectness):
    routed, _ = pair("yolov8n", objectness=objectness)
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
        odds = torch.log(plain[i, 4:, own] / (1 - plain[i, 4:, own])) + objectness * of_cell.log()
        torch.testing.assert_close(found[i, 4:, own], odds.sigmoid(), atol=1e-6, rtol=1e-3)


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


@pytest.mark.parametrize("name", ["yolo26n", "yolo26n-seg", "yolo11n-pose", "yolo26n-obb", "yolo12n"])
def test_training_reaches_windows_and_router(name):
    """The loss counts what windows own; the router learns by a column of its own."""
    routed, _ = pair(name, size=64)
    routed.train()
    batch = make_batch(2, 192) if "seg" in name else make_box_batch(2, 192)
    batch["img"] = torch.rand(2, 3, 192, 192)
    if "pose" in name:
        batch["keypoints"] = torch.rand(3, 17, 3)
    if "obb" in name:
        batch["bboxes"] = torch.cat((batch["bboxes"], torch.zeros(3, 1)), 1)
    total, items = routed.loss(batch)
    assert "windows" in items
    assert 0 < float(items["windows"]) < 5
    total.sum().backward()
    gradients = {key for key, p in routed.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(".router.rows." in key for key in gradients)
    assert any(".router.head." in key for key in gradients)
    assert "model.0.conv.weight" in gradients


def test_in_training_windows_find_the_objects():
    """Whatever the router knows."""
    routed, _ = pair("yolo26n", size=64, capacity=0.2)
    routed.train()
    batch = make_box_batch(2, 320)
    batch["img"] = torch.rand(2, 3, 320, 320)
    batch["bboxes"] = torch.tensor([[0.25, 0.25, 0.05, 0.05], [0.9, 0.1, 0.05, 0.05], [0.1, 0.9, 0.05, 0.05]])
    routed.loss(batch)
    kept = head_of(routed).windows.kept()
    assert kept[0, 2, 2]
    assert kept[1, 0, 8] or kept[1, 1, 9]
    assert kept[1, 9, 1] or kept[1, 8, 0]


def test_copies_and_files_keep_windows(tmp_path):
    """deepcopy, EMA, pickle, a checkpoint, weights alone, half precision."""
    routed, _ = pair("yolo26n")
    x = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        expected = routed(x)[0]
        for other in (copy.deepcopy(routed), ModelEMA(routed).ema, pickle.loads(pickle.dumps(routed))):
            assert torch.equal(other.eval()(x)[0], expected)
            assert head_of(other).entry is other.model[0]
        routed.half()(x.half())
        routed.float()
        with torch.autocast("cpu", torch.bfloat16):
            routed(x)
    torch.save({"model": routed}, tmp_path / "w.pt")
    again = load_model(tmp_path / "w.pt").model
    assert type(head_of(again)).__name__ == "WindowedDetect"


def test_plain_yolo_trains_validates_predicts_and_tracks(tmp_path, tiny_data):
    """In a fresh process, from the YAML; stopped after an epoch, the training goes on."""
    file = write_windows_yaml(tmp_path, size=64, capacity=0.4, coarse=0.25)
    code = f"""
from ultralytics import YOLO

def stop(trainer):
    if trainer.epoch == 1:
        raise KeyboardInterrupt

model, data = YOLO({str(file)!r}), {str(tiny_data)!r}
model.add_callback("on_train_epoch_start", stop)
try:
    model.train(data=data, epochs=2, imgsz=192, batch=4, workers=0, plots=False, project={str(tmp_path)!r})
except KeyboardInterrupt:
    print("stopped")
last = model.trainer.last
YOLO(last).train(resume=True)
best = YOLO(last)
best.val(data=data, imgsz=192, workers=0, plots=False)
photo = {str(next(Path(tiny_data).parent.rglob("*.jpg")))!r}
best.predict(photo, imgsz=192)
best.track(photo, imgsz=192, persist=True)
print("trained", best.model.model[0].router.trained)
"""
    done = run_python(code, tmp_path)
    assert "stopped" in done.stdout, done.stderr
    assert "trained True" in done.stdout, done.stderr
    assert "trains on windows of 64 px, 40 % of the pixels" in done.stdout + done.stderr
    folder = next(tmp_path.rglob("results.csv")).parent
    rows = read_csv(folder / "results.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[-1]["train/windows"]) > 0
    assert float(read_csv(folder / "routing.csv")[-1]["routed"]) > 0.3


@pytest.mark.parametrize(
    ("name", "windows", "told"),
    [
        ("yolo26n", {"size": 100}, "mod.windows.size must be a multiple of 32 px"),
        ("yolov8n-p6", {"size": 96}, "must be a multiple of 64 px, the model's largest stride"),
        ("yolo26n", {"capacity": 0}, "capacity"),
        ("yolo26n", {"router": "magic"}, "unknown router 'magic', choose one of look, stem"),
        ("yolo26n", {"router": "density"}, "reads the coarse pass; set coarse: 0.25"),
        ("yolo26n", {"router": "stem"}, "set entry: to a later row"),
        ("yolo26n", {"coarse": 0.3}, "mod.windows.coarse must be one of 0, 0.5, 0.25, 0.125"),
        ("yolo26n", {"objectness": 2}, "mod.windows.objectness must be a number in [0, 1], got 2"),
        ("yolo26n", {"entry": 40}, "windows cannot be taken at layer 40"),
        ("yolo26n", {"entry": -1}, "mod.windows.entry must be the number of a row"),
        ("yolo26n", {"entry": 17}, "the head reads a row before layer 17"),
        ("yolo26n", {"sizes": 3}, "mod.windows: unknown key sizes"),
        ("yolo26n", {"nc": 3}, "mod.windows: unknown key nc"),
        ("yolo11n-cls", {"size": 64}, "head Classify does not run on windows"),
        ("yolo26n-mod-hybrid", {"size": 64}, "routes tokens of the whole image"),
    ],
)
def test_what_is_refused(name, windows, told):
    d = tasks.yaml_model_load(f"{name}.yaml")
    d["mod"] = {"windows": windows}
    _, error = attempt(lambda: tasks.DetectionModel(d, verbose=False))
    assert told in error
    assert "\n" not in error


def test_images_that_are_no_whole_number_of_cells():
    routed, _ = pair("yolo26n")
    with pytest.raises(ValueError, match="multiples of 32 px, got 200 x 256"):
        routed(torch.rand(1, 3, 200, 256))


def test_attention_is_told(caplog, monkeypatch):
    monkeypatch.setattr(LOGGER, "propagate", True)
    tasks.DetectionModel(described("yolo26n", size=128), verbose=True)
    assert "attention of layer 10 (C2PSA) is within a window" in caplog.text


def test_look_starts_from_the_weights_that_are_loaded():
    routed, dense = pair("yolo26n")
    rows = head_of(routed).entry.router.rows
    assert torch.equal(rows[0].conv.weight, dense.model[0].conv.weight)
    with torch.no_grad():
        rows[0].conv.weight.fill_(1.0)
    other = made(described("yolo26n", capacity=0.25))
    other.load(routed, verbose=False)  # a router that was trained is kept
    assert float(head_of(other).entry.router.rows[0].conv.weight.min()) == 1.0
    assert isinstance(rows, nn.Sequential)


def test_weights_of_other_classes_leave_the_router_untrained():
    """Its scores find no place, so nobody may take it for a trained one."""
    source, same = (made(described("yolo26n", router="look")) for _ in range(2))
    head_of(source).entry.router.steps += 100
    same.load(source, verbose=False)
    assert head_of(same).entry.router.trained
    other = made({**described("yolo26n", router="look"), "nc": 7})
    other.load(source, verbose=False)
    assert not head_of(other).entry.router.trained


@pytest.mark.parametrize("halvings", range(6))
def test_the_head_of_a_router_comes_down_to_cells(halvings):
    head = CellHead(16, halvings, 3).eval()
    assert head(torch.rand(1, 16, 2 * 2**halvings, 3 * 2**halvings)).shape == (1, 4, 2, 3)


@torch.no_grad()
def test_scores_of_a_class_that_are_no_numbers_are_noticed():
    model = made(described("yolo26n", router="look")).eval()
    head_of(model).entry.router.head[-1].bias[-1] = float("nan")
    model(torch.rand(1, 3, 128, 128))
    with pytest.raises(ValueError, match=r"router scores of model\.0 are NaN"):
        check_finite(model)


def test_a_yolo_object_takes_capacity_and_saves_it(tmp_path):
    yolo = YOLO(str(write_windows_yaml(tmp_path, size=64, capacity=0.4)))
    set_capacity(yolo, 0.2)
    assert yolo.model.yaml["mod"]["windows"] == {"size": 64, "capacity": 0.2}
    yolo.save(tmp_path / "a.pt")
    assert YOLO(tmp_path / "a.pt").model.model[0].capacities == (0.2,)


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


def test_names_come_with_all_weights_or_not():
    dense = made(described("yolo26n"))
    dense.names = {0: "car", 1: "bus", 2: "van"}
    routed = made(described("yolo26n", size=64))
    routed.load(dense, verbose=False)
    assert routed.names == dense.names
    larger = made(described("yolo26s", size=64))
    larger.load(dense, verbose=False)
    assert larger.names == {0: "0", 1: "1", 2: "2"}
    rows = head_of(larger).entry.router.rows
    assert torch.equal(rows[0].conv.weight, larger.model[0].conv.weight)


@pytest.mark.parametrize("mod", [{"warmup": 0.5}, {"elastic": [0.3, 1.0]}])
def test_schedules_have_the_same_columns_in_each_step(tmp_path, tiny_data, mod):
    file = write_windows_yaml(tmp_path, size=64, capacity=0.5)
    d = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(d | {"mod": d["mod"] | mod}))
    yolo = YOLO(str(file))
    settings = {"imgsz": 96, "batch": 4, "workers": 0, "plots": False, "device": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mod_vision.yolo.train.fit.fit_windows", partial(fit_windows, steps=2))
        yolo.train(data=str(tiny_data), epochs=2, freeze=10, project=str(tmp_path), **settings)
    rows = read_csv(next(tmp_path.rglob("results.csv")))
    assert len(rows) == 2
    assert all("val/windows" in row for row in rows)
    router = YOLO(yolo.trainer.last).model.model[0].router
    assert router.trained


def test_trainings_that_are_refused(tmp_path, tiny_data):
    settings = {"data": str(tiny_data), "imgsz": 64, "epochs": 1, "batch": 4, "workers": 0, "plots": False}
    yolo = YOLO(str(write_windows_yaml(tmp_path, size=64, router="oracle")))
    _, told = attempt(lambda: yolo.train(**settings, project=str(tmp_path)))
    assert "router: oracle goes by the labels" in told


def test_outputs_can_be_walked_through(tmp_path, photos):
    """As `visualize=True` does, which takes tuples apart."""
    yolo = YOLO(str(write_windows_yaml(tmp_path, size=64)))
    yolo.predict(str(photos[0]), imgsz=96, visualize=True, project=str(tmp_path), verbose=False)
