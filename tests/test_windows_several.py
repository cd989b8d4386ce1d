"""A folder of graphs for several numbers of windows: each image gets those it needs, and finds what eager finds."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from drone_images import HITUAV
from ultralytics import YOLO
from ultralytics.utils.nms import non_max_suppression
from windowed import GRAY, SIZE, calibrated, looked_at

from mod_vision.cli.export import export
from mod_vision.cli.keys import describe
from mod_vision.cli.main import main
from mod_vision.resources import find_shipped
from mod_vision.routing.placing import gains_of, plan_windows, windows_in_order, worthy
from mod_vision.yolo.export import runtime
from mod_vision.yolo.export.check import ExportCheck
from mod_vision.yolo.export.check_several import check_several
from mod_vision.yolo.export.exporter import input_tensors
from mod_vision.yolo.export.several import Several, export_several, window_numbers
from mod_vision.yolo.model.windows import head_of

NO_TORCH = "raise ImportError('torch is not there')"


def thresholded(path: Path, photos: list[Path]) -> Path:
    """Give a checkpoint a threshold at which some photos are worth more windows than others."""
    yolo: Any = YOLO(path)
    entry, gains = head_of(yolo.model).entry, []
    for image in input_tensors(photos[:20], SIZE):
        with torch.inference_mode():
            yolo.model.eval()(image)
        gains.append(gains_of(entry.plan))
    entry.set_threshold(float(torch.cat(gains).sort().values[-80]))  # exactly what a window gains, as `fit` sets it
    yolo.save(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(photos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    return thresholded(calibrated("yolo26n", photos, folder, objectness=0.25, doubt=0.6), photos)


@pytest.fixture(scope="module")
def done(checkpoint) -> Several:
    return export_several(checkpoint, "8,2", SIZE)


def assert_equals_eager(check: ExportCheck) -> None:
    assert check.same_indices == 1.0
    assert check.max_error < 2e-3  # an untrained model's float32 is not exact
    assert check.distinct_routes


def test_the_folder_equals_eager_in_threshold_mode(done, photos):
    check, said = check_several(done, looked_at(photos))
    assert_equals_eager(check)
    ran = [runtime.run_image(done.path, done.about, x.numpy(), 1) for x in looked_at(photos)]
    assert {(one.graph, one.corners.shape[1]) for one in ran} == {("", 0), ("k2", 2), ("k8", 8)}
    assert said.startswith("windows that were run: 0 on ")


def test_the_check_notices_another_threshold(done, photos):
    entry = done.eager.model[-1].entry
    before = entry.threshold
    entry.threshold = before * 8
    try:
        check, _ = check_several(done, looked_at(photos)[:6])
    finally:
        entry.threshold = before
    assert check.same_indices < 1.0
    assert not check.passed


def test_weights_are_stored_once(done):
    graphs = sorted(done.path.glob("*.onnx"))
    assert [graph.name for graph in graphs] == ["k2.onnx", "k8.onnx", "router.onnx"]
    for graph in graphs:
        tensors = onnx.load(graph, load_external_data=False).graph.initializer
        places = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
        assert places == {"weights.bin"}
    parameters = 4 * sum(p.numel() for p in done.eager.parameters())
    assert (done.path / "weights.bin").stat().st_size < 1.1 * parameters
    assert sum(file.stat().st_size for file in done.path.iterdir()) < 1.2 * parameters
    about = json.loads((done.path / "metadata.json").read_text())
    assert (about["k"], about["imgsz"], about["task"], about["end2end"]) == ([2, 8], [SIZE, SIZE], "detect", False)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Several:
    """The folder of the checkpoint that ships, of the shape of drone images."""
    path = tmp_path_factory.mktemp("shipped") / "best.pt"
    shutil.copy(find_shipped("yolo26n-mod-hituav.pt"), path)
    return export_several(path, "all", (512, 640))


@pytest.fixture(scope="module")
def without_torch(shipped, tmp_path_factory):
    """Run the folder's script, moved to another place, where torch cannot be imported."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(shipped.path, folder / "windows")
    for name in ("torch", "ultralytics", "mod_vision"):
        (folder / "none" / name).mkdir(parents=True)
        (folder / "none" / name / "__init__.py").write_text(NO_TORCH)

    def run(*words: Any) -> subprocess.CompletedProcess:
        env = {**os.environ, "PYTHONPATH": str(folder / "none")}
        command = [sys.executable, folder / "windows" / "run.py", *words]
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)

    return run


def test_the_script_finds_what_yolo_predict_finds_without_torch(shipped, without_torch):
    photos = sorted((HITUAV / "images" / "val").glob("*.jpg"))[::12]
    ran = without_torch(*photos)
    assert ran.returncode == 0, ran.stderr[-2000:]
    blocks: dict[str, list[list[float]]] = {}
    for line in ran.stdout.splitlines():
        if line.endswith(" objects"):
            name = line.partition(":")[0]
            blocks[name] = []
        else:
            cls, conf, *box = line.split()
            kind = next(i for i, name in shipped.eager.names.items() if name == cls)
            blocks[name].append([*map(float, box), float(conf), kind])
    assert list(blocks) == [str(photo) for photo in photos]
    results = YOLO(shipped.path.with_name("best.pt")).predict(photos, imgsz=640, device="cpu", verbose=False)
    found, scale = 0, np.array([1, 1, 1, 1, 500, 1000])
    for result, rows in zip(results, blocks.values(), strict=True):
        expected, own = result.boxes.data.numpy(), np.reshape(rows, (-1, 6))
        for some, others, least in ((expected, own, 0.26), (own, expected, 0.26)):
            for row in some[some[:, 4] > least]:
                assert (np.abs(others - row) * scale).max(1).min() < 1.0, "a pixel, 0.002 of confidence, the class"
                found += 1
    assert found > 10


def test_the_script_on_images_without_anything_or_none(without_torch, tmp_path):
    cv2.imwrite(str(tmp_path / "gray.png"), np.full((200, 100, 3), round(GRAY * 255), np.uint8))
    ran = without_torch(tmp_path / "gray.png")
    assert ran.stdout == f"{tmp_path}/gray.png: 0 windows, 0 objects\n"
    ran = without_torch(tmp_path / "none.png")
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == f"error: {tmp_path}/none.png is no image that can be read."


def test_nms_of_the_script_is_that_of_ultralytics():
    y = torch.cat((torch.rand(2, 300) * 200, 20 + torch.rand(2, 300) * 60, torch.rand(3, 300)))
    (expected,) = non_max_suppression(y[None], runtime.CONF, runtime.IOU)
    found = runtime.candidates(y.numpy(), 3, runtime.CONF)
    assert 10 < len(expected) < 300
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-3)


def test_a_coarse_pass_looks_at_images_without_windows_too(photos, tmp_path):
    """In a model with NMS."""
    path = thresholded(calibrated("yolov8n", photos, tmp_path, coarse=0.25), photos)
    done = export_several(path, [3], SIZE)
    assert (done.about["k"], done.about["end2end"]) == ([0, 3], False)
    assert_equals_eager(check_several(done, looked_at(photos))[0])
    ran = runtime.run_image(done.path, done.about, torch.full((1, 3, SIZE, SIZE), GRAY).numpy(), 1)
    assert (ran.graph, ran.corners.shape) == ("k0", (1, 0, 2))
    assert ran.outputs[0].shape == (1, 7, 84)


@pytest.fixture(scope="module")
def crowded(checkpoint, photos, tmp_path_factory) -> Path:
    """A checkpoint that runs images as a whole from half of their pixels on."""
    path = tmp_path_factory.mktemp("crowded") / "best.pt"
    yolo: Any = YOLO(checkpoint)
    head_of(yolo.model).entry.crowded = 0.5
    for name, module in yolo.model.model[-1].named_modules():
        if "cv3" in name and isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            module.weight.data *= 0.03  # or the scores of whole images, which the router does not lower, would all be 1
    yolo.model.end2end = True
    yolo.save(path)
    return path


@functools.cache
def all_numbers(path: Path, format: str) -> Several:
    return export_several(path, "all", (192, SIZE), format)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_all_numbers_are_those_of_the_model_itself(crowded, photos, format):
    """On images that are wider than high, empty and crowded ones among them; eager is the model as it is."""
    size = (192, SIZE)
    done = all_numbers(crowded, format)
    assert done.path.name == f"best{'' if format == 'onnx' else '_openvino'}_windows"
    assert (done.about["k"], done.about["whole"], done.about["imgsz"]) == ([1, 2, 3, 4], True, list(size))
    images = [*input_tensors(photos[:20], size), torch.full((1, 3, *size), GRAY)]
    check, said = check_several(done, images)
    assert_equals_eager(check)
    ran = [runtime.run_image(done.path, done.about, x.numpy(), 1, runtime.FLOAT32) for x in images]
    own: Any = YOLO(crowded).model.eval()
    for image, one in zip(images, ran, strict=True):
        with torch.inference_mode():
            own(image)
        plan = head_of(own).entry.plan
        assert (one.graph == "whole") == (plan.whole is not None)
        if plan.whole is None:
            assert np.array_equal(one.corners, plan.corners.numpy())
    assert {one.graph for one in ran} >= {"", "whole"}
    assert f"whole image on {sum(one.graph == 'whole' for one in ran)} images" in said


def test_the_script_says_that_it_ran_a_whole_image_or_lacks_a_runtime(crowded, photos, tmp_path):
    folder = shutil.copytree(all_numbers(crowded, "openvino").path, tmp_path / "windows")
    (tmp_path / "none" / "openvino").mkdir(parents=True)
    (tmp_path / "none" / "openvino" / "__init__.py").write_text("raise ImportError('not there', name='openvino')")
    script = [sys.executable, folder / "run.py", *photos[:20]]
    ran = subprocess.run(script, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ": the whole image, " in ran.stdout
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "none")}
    ran = subprocess.run(script, env=env, capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stderr) == (1, "error: openvino is not installed: pip install openvino\n")


def test_fewer_windows_are_the_first_of_more():
    logits = torch.randn(3, 80) * 3
    corners, gains = windows_in_order(logits, (8, 10), (3, 3), 8)
    for k in range(1, 8):
        assert torch.equal(windows_in_order(logits, (8, 10), (3, 3), k)[0], corners[:, :k])
    for least in (0.0, float(gains[0, 3]), 1e3):
        counts = [next((i for i, gain in enumerate(row) if gain < least), 8) for row in gains.tolist()]
        assert worthy(gains, least).tolist() == counts
        plan = plan_windows(logits, (8, 10), (3, 3), 8, least=least, counts=(0, 5, 8))
        assert plan.counts().tolist() == [0 if n == 0 else 5 if n <= 5 else 8 for n in counts]
        assert torch.equal(plan.corners, corners[:, : plan.width])


def test_a_model_that_runs_all_images_as_a_whole_is_refused(crowded):
    with pytest.raises(ValueError, match=r"k=all: a window of 64 px computes 50 % of the pixels.*give a larger imgsz"):
        export_several(crowded, "all", (64, 128))


@pytest.mark.parametrize(
    ("k", "said"),
    [
        ("0,4", "all, or whole numbers of windows from 1 to 16, joined by commas"),
        ("4,17", "from 1 to 16, joined by commas; 16 windows of 64 px compute as much as an image of 256x256 px has"),
        ("4,many", "k=4,many: k takes all, or whole numbers"),
        ("2.5", "k=2.5: k takes all, or whole numbers"),
        (",", "k=,: k takes all, or whole numbers"),
        ("4,2,4", "k=4,2,4: a number is there twice; give each once: k=2,4"),
    ],
)
def test_numbers_that_do_not_occur_are_refused(k, said, done):
    with pytest.raises(ValueError, match=said):
        window_numbers(k, done.eager.model[-1].entry, (SIZE, SIZE))


def test_models_without_windows_or_a_threshold_are_refused(photos, tmp_path):
    with pytest.raises(ValueError, match=r"k=2: yolo26n-mod-hybrid-seg\.pt does not run on windows"):
        export_several("yolo26n-mod-hybrid-seg.pt", "2", SIZE)
    with pytest.raises(ValueError, match=r"takes a checkpoint \(\.pt\)"):
        export_several("yolo26n-mod.yaml", "2", SIZE)
    path = calibrated("yolo26n", photos, tmp_path, router="stem", entry=2)
    with pytest.raises(ValueError, match=r"has no threshold, so all .* mod-vision fit model=.* thresholds=True"):
        export_several(path, "2", SIZE)
    with pytest.raises(ValueError, match="has a router that reads the network; k needs router look or scout"):
        export_several(thresholded(path, photos), "2", SIZE)


def test_keys_that_do_not_go_with_it_are_refused(checkpoint):
    with pytest.raises(ValueError, match="leave out capacity, batch, dynamic, quantize, or k"):
        export(str(checkpoint), "openvino", 0.5, batch=2, dynamic=True, quantize=8, k="2")
    with pytest.raises(ValueError, match="k=2: format=engine is none of onnx, openvino; choose one, or leave out k"):
        export(str(checkpoint), "engine", k="2")
    assert "k= " in describe("mod-vision export", export)


def test_the_verb_says_what_was_run(checkpoint, tmp_path, capsys):
    shutil.copy(checkpoint, tmp_path / "best.pt")
    code = main(["export", f"model={tmp_path / 'best.pt'}", f"imgsz=160,{SIZE}", "k=4", "images=4", "threads=1"])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert f"{tmp_path / 'best_windows'}: equals eager on 4 images" in said.out
    assert "windows that were run: " in said.out
    assert {path.name for path in tmp_path.iterdir()} == {"best.pt", "best_windows"}
    assert json.loads((tmp_path / "best_windows" / "metadata.json").read_text())["imgsz"] == [160, SIZE]


def test_sides_are_rounded_up_to_the_stride_of_the_model(photos, tmp_path, capsys):
    """P6 models have 64 px: the check asks for the size of the export, with one graph and with several."""
    path = thresholded(calibrated("yolo26n-p6", photos, tmp_path), photos)
    for words in (["k=2"], ["capacity=0.25"]):
        main(["export", f"model={path}", f"imgsz=160,{SIZE}", "images=2", "threads=1", *words])
        said = capsys.readouterr()
        assert "on 2 images: largest relative error" in said.out, said.err  # how large that is, other tests ask


@pytest.mark.parametrize("imgsz", ["192,x", "192,256,3", "", "-1", "[192"])
def test_sizes_that_are_none_are_refused(imgsz, checkpoint, capsys):
    assert main(["export", f"model={checkpoint}", f"imgsz={imgsz}"]) == 1
    assert capsys.readouterr().err.startswith(f"error: imgsz={imgsz}")
