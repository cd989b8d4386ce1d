"""Threshold mode: an image gets as many tokens as it needs, whatever else is in its batch."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from conftest import FEW, randomise
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.modules.block import C2PSA, A2C2f
from ultralytics.nn.modules.transformer import AIFI

import mod_vision
from mod_vision.cli.main import main
from mod_vision.eval.cost.flops import executed_gflops
from mod_vision.eval.cost.image_cost import ImageCosts
from mod_vision.nn import MixtureOfDepthsBlock, MoDStage
from mod_vision.routing import routed_layers
from mod_vision.routing.threshold import BUCKETS, budget_threshold, count_above
from mod_vision.yolo.blocks import MoDA2C2f, MoDAIFI, MoDC2PSA
from mod_vision.yolo.export.exporter import input_tensors
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.validate import validate


@FEW
@given(images=st.integers(1, 4), tokens=st.integers(1, 90), threshold=st.floats(-2, 2), seed=st.integers(0, 999))
def test_counts_equal_a_loop(images, tokens, threshold, seed):
    logits = torch.randn(images, tokens, generator=torch.Generator().manual_seed(seed))
    counts = count_above(logits, threshold)
    for scores, count in zip(logits, counts.tolist(), strict=True):
        above = sum(score > threshold for score in scores.tolist())
        allowed = sorted({max(1, i * tokens // BUCKETS) for i in range(1, BUCKETS + 1)})
        assert count == next(k for k in allowed if k >= above)


@FEW
@given(
    sizes=st.lists(st.integers(16, 80), min_size=1, max_size=6),
    capacity=st.floats(0.1, 0.99),
    seed=st.integers(0, 999),
)
def test_the_budget_is_kept_and_used(sizes, capacity, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(1, n, generator=generator) + torch.randn(1, generator=generator) for n in sizes]

    def mean_share(threshold: float) -> float:
        return sum(float(count_above(s, threshold)) / s.shape[1] for s in logits) / len(logits)

    threshold = budget_threshold(logits, capacity)
    values = torch.cat([s.flatten() for s in logits]).unique()
    lower = values[values < threshold]
    assert mean_share(threshold) <= capacity or threshold == values.max()
    assert not len(lower) or mean_share(float(lower.max())) > capacity


def uneven_images(channels: int, side: int = 8) -> torch.Tensor:
    """Three maps with little, some and much to see."""
    x = torch.randn(3, channels, side, side, dtype=torch.double)
    x[0, :, : side // 2 + 2] *= 0.01  # not 0: equal scores would be ties
    x[1, :, : side // 4] *= 0.01
    return x


ROUTED = (0.5, "linear", "layer 3")
LAYERS = {
    "stage": lambda: MoDStage(32, 32, 2),
    "C2PSA": lambda: MoDC2PSA.from_dense(C2PSA(128, 128, 1), *ROUTED),
    "AIFI": lambda: MoDAIFI.from_dense(AIFI(32, 64, 4), *ROUTED),
}


def with_threshold(layer: nn.Module) -> nn.Module:
    layer = randomise(layer).double().eval()
    layer.set_threshold(0.0)
    return layer


@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_equals_its_images_one_by_one(name):
    layer = with_threshold(LAYERS[name]())
    x = uneven_images(128 if name == "C2PSA" else 32)
    with torch.no_grad():
        alone, kept = [], []
        for image in x:
            alone.append(layer(image[None]))
            kept.append(layer.plan.kept())
        together = layer(x)
    assert len({int(k.sum()) for k in kept}) > 1, "the images need different numbers of tokens"
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-10, atol=1e-10)
    assert torch.equal(layer.plan.kept(), torch.cat(kept))
    assert torch.equal(layer.depth_map() > 0, torch.cat(kept))


@pytest.mark.parametrize("name", LAYERS)
def test_a_low_threshold_is_full_capacity_with_gates(name):
    layer = with_threshold(LAYERS[name]())
    x = uneven_images(128 if name == "C2PSA" else 32)
    layer.set_threshold(-1e9)
    with torch.no_grad():
        everything = layer(x)
        layer.set_capacity(1 - 1e-9)  # all tokens, but routed
        torch.testing.assert_close(everything, layer(x), rtol=1e-10, atol=1e-10)


def test_training_stays_at_the_capacity():
    layer = with_threshold(MoDStage(32, 32, 1, capacity=0.25)).train()
    layer(uneven_images(32))
    assert layer.plan.indices.shape[1] == 16
    assert layer.plan.real is None


def test_set_capacity_ends_threshold_mode():
    layer = with_threshold(MoDStage(32, 32, 1))
    layer.set_capacity(0.25)
    layer(uneven_images(32))
    assert layer.threshold is None
    assert layer.plan.indices.shape[1] == 16


@pytest.mark.parametrize("layer", [lambda: MoDA2C2f.from_dense(A2C2f(64, 64, 1), *ROUTED), lambda: MoDStage(64, 64, 1)])
def test_layers_that_take_one_image_at_a_time(layer):
    layer = with_threshold(layer())
    x = uneven_images(64)
    assert layer(x[:1]).shape == (1, 64, 8, 8)
    if layer.takes_ragged:
        assert layer(x).shape == (3, 64, 8, 8)
    else:
        with pytest.raises(ValueError, match=r"use batch=1, or set_capacity"):
            layer(x)


def test_what_has_no_threshold():
    with pytest.raises(ValueError, match=r"need a learned router, NormRouter ranks within an image"):
        MoDStage(32, 32, 2, router="norm").set_threshold(0.0)
    with pytest.raises(ValueError, match=r"need one capacity below 1"):
        MoDStage(32, 32, 2, capacity=[0.5, 0.25]).set_threshold(0.0)
    with pytest.raises(ValueError, match=r"need one capacity below 1"):
        MixtureOfDepthsBlock(32, 1.0).set_threshold(0.0)


def test_an_export_is_refused():
    layer = with_threshold(MoDStage(32, 32, 1))
    with pytest.raises(ValueError, match=r"call set_capacity\(model, ...\) before it"):
        torch.jit.trace(layer, uneven_images(32))


@pytest.fixture
def trained(tmp_path) -> YOLO:
    """A model whose routers tell images apart."""
    model = load_model("yolo26n-mod-hybrid.yaml")
    for _, layer in routed_layers(model.model):
        nn.init.normal_(layer.router.proj.weight, std=0.3)
    return model


def test_calibration_keeps_the_budget(trained, photos):
    shares = mod_vision.calibrate_thresholds(trained, photos, capacity=0.4, imgsz=160)
    assert list(shares) == [name for name, _ in routed_layers(trained.model)]
    for of_layer in shares.values():
        assert len(of_layer) == len(photos)
        assert sum(of_layer) / len(photos) == pytest.approx(0.4, abs=0.03)
        assert max(of_layer) > min(of_layer)


def test_images_that_cannot_be_read_are_left_out(trained, photos, tmp_path, capsys):
    empty = tmp_path / "empty.jpg"
    empty.touch()
    found = mod_vision.calibrate_thresholds(trained, [*photos[:2], empty], 0.4, 64)
    assert {len(shares) for shares in found.values()} == {2}
    assert capsys.readouterr().out == f"left out: {empty} is not an image that can be read.\n"
    for read in (
        lambda: mod_vision.calibrate_thresholds(trained, [empty], 0.4, 64),
        lambda: input_tensors([empty], 64),
    ):
        with pytest.raises(ValueError, match=r"none of the 1 images can be read, such as .*empty\.jpg"):
            read()


@pytest.mark.parametrize("capacity", [1.0, 0.0, 1.5, "half"])
def test_bad_budgets(trained, photos, capacity):
    with pytest.raises(ValueError, match=r"capacity"):
        mod_vision.calibrate_thresholds(trained, photos, capacity, imgsz=64)


def test_command_saves_and_val_reports_each_image(trained, tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trained.save("a.pt")
    words = ["thresholds=True", "model=a.pt", f"data={tiny_data}", "imgsz=192"]
    assert main(["fit", *words]) == 0, capsys.readouterr().err
    assert "saved as a-threshold.pt" in capsys.readouterr().out
    assert main(["val", "model=a-threshold.pt", f"data={tiny_data}", "imgsz=192", "out=o"]) == 0
    said = capsys.readouterr().out
    assert "routed share by image" in said
    found = json.loads((tmp_path / "o" / "evaluation.json").read_text())
    model, routed = load_model("a-threshold.pt"), set()
    for name, layer in routed_layers(model.model):
        by_image = found["routed_share_by_image"][name]
        assert sorted(by_image) == sorted(p.name for p in (tiny_data.parent / "images" / "val").iterdir())
        assert layer.threshold is not None
        routed |= set(by_image.values())
    assert len(routed) > 1
    gflops = found["gflops_by_image"]
    assert list(gflops) == list(by_image)
    assert found["cost"]["gflops"] == pytest.approx(sum(gflops.values()) / len(gflops))
    assert f": means of all images, {min(gflops.values()):.2f} to {max(gflops.values()):.2f}" in said
    assert "mean of 4 images on squares" in said
    assert found["cost"]["gflops"] < found["cost"]["dense_gflops"]


def test_gflops_are_those_of_each_image_alone_at_its_input_size(trained, tiny_data, tmp_path):
    """Batches are rectangular, and their images have different numbers of tokens."""
    mod_vision.calibrate_thresholds(trained, str(tiny_data), capacity=0.4, imgsz=96)
    costs, wanted, dense, sizes = ImageCosts(), [], [], set()

    def watch(model, images):
        costs.update(model, images)
        wanted.extend(executed_gflops(model, image=image) for image in images.split(1))
        twin = copy.deepcopy(model)
        mod_vision.set_capacity(twin, 1.0)
        dense.extend([executed_gflops(twin, image=images[:1])] * len(images))
        sizes.add(tuple(images.shape[2:]))

    validate(trained, watch=watch, data=str(tiny_data), imgsz=96, batch=2, device="cpu", project=str(tmp_path))
    assert sizes != {(96, 96)}
    assert len(set(wanted)) > 1
    assert costs.executed == pytest.approx(wanted)
    assert costs.dense == pytest.approx(dense)
