"""Models of our YAMLs on images of any shape, down to a pixel, and in low precision."""

from __future__ import annotations

import pytest
import torch
from helpers import build, layers
from torch import nn

from mod_vision.routing import num_routed


@pytest.mark.parametrize(
    "name", ["yolo26n-mod-hybrid.yaml", "yolo11n-mod-attention.yaml", "yolo12n-mod-attention.yaml"]
)
def test_any_image_shape(name):
    model = build(name).eval()
    with torch.inference_mode():
        for size in ((96, 64), (32, 160), (32, 32)):
            out = model(torch.rand(2, 3, *size))[0]
            assert out.isfinite().all()
            for layer in layers(model):
                height, width = layer.plan.size
                assert (height / width) == (size[0] / size[1])
                k, area = num_routed(height * width, 0.5), 4 if height == size[0] // 16 and "12" in name else 1
                assert layer.plan.indices.shape == (2, -(-k // area) * area)


@pytest.mark.parametrize(
    "name", ["yolo26n-mod-hybrid.yaml", "yolo11n-mod-attention.yaml", "yolo12n-mod-attention.yaml"]
)
def test_low_precision(name):
    dtype = torch.bfloat16
    model = build(name).eval().to(dtype)
    with torch.inference_mode():
        out = model(torch.rand(1, 3, 64, 64, dtype=dtype))[0]
    assert out.isfinite().all()
    assert all(layer.plan.logits.dtype == dtype for layer in layers(model))


def test_routed_layers_take_a_single_pixel():
    model = build("yolo26n-mod-hybrid.yaml").eval()
    for layer in layers(model):
        channels = layer.proj.in_channels if isinstance(layer.proj, nn.Conv2d) else layer.pos.in_channels
        assert layer(torch.rand(1, channels, 1, 1)).isfinite().all()
        assert layer.plan.indices.tolist() == [[0]]


def test_image_below_one_patch():
    """YOLO's neck needs sides of 32 pixels; where a routed layer is the first to fail, it says why."""
    x = torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"^MoDA2C2f: a 1x1 map cannot be cut into 4 areas"):
        build("yolo12n-mod-attention.yaml").eval()(x)
    for name in ("yolo26n-mod-hybrid.yaml", "yolo11n-mod-attention.yaml", "yolo11n.yaml"):
        model = build(name).eval()
        with pytest.raises(RuntimeError, match=r"Sizes of tensors must match"):  # the neck's Concat, as when dense
            model(x)
        assert all(layer.plan.indices.tolist() == [[0]] for layer in layers(model))
