"""Routed forms against the dense Ultralytics blocks they stand for."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import randomise
from torch import nn
from ultralytics.nn.modules.block import C2PSA, A2C2f
from ultralytics.nn.modules.transformer import AIFI
from ultralytics.nn.tasks import DetectionModel

import mod_vision
from mod_vision.routing import routed_layers
from mod_vision.yolo.blocks import ROUTED_BLOCKS, MoDA2C2f, MoDAIFI, MoDC2PSA

ALL = 0.9999999  # below 1, so tokens are gathered, and rounded up to all of them
SIZE = (6, 4)

DENSE = {
    "C2PSA": lambda: C2PSA(128, 128, n=1),
    "C2PSA two blocks, two heads": lambda: C2PSA(256, 256, n=2),
    "A2C2f area 1": lambda: A2C2f(64, 64, n=1, a2=True, area=1),
    "A2C2f area 4": lambda: A2C2f(64, 128, n=2, a2=True, area=4),
    "A2C2f area 4, residual": lambda: A2C2f(128, 128, n=1, a2=True, area=4, residual=True),
    "AIFI post-norm": lambda: AIFI(32, 64, num_heads=4, normalize_before=False),
    "AIFI pre-norm": lambda: AIFI(32, 64, num_heads=4, normalize_before=True),
}


def make_dense(kind: str) -> nn.Module:
    return randomise(DENSE[kind]()).double().eval()


def make_twin(dense: nn.Module, capacity: object, router: str = "norm") -> nn.Module:
    twin = ROUTED_BLOCKS[f"MoD{type(dense).__name__}"].from_dense(dense, capacity, router, "layer 3")
    return twin.to(next(dense.parameters()).dtype).train(dense.training)


def make_input(dense: nn.Module, batch: int = 2, size: tuple[int, int] = SIZE) -> torch.Tensor:
    channels = dense.fc1.in_features if isinstance(dense, AIFI) else dense.cv1.conv.in_channels
    return torch.randn(batch, channels, *size, dtype=torch.float64)


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("router", ["norm", "linear"])
def test_capacity_one_is_the_dense_block(kind, router):
    dense = make_dense(kind)
    x = make_input(dense)
    twin = make_twin(dense, 1.0, router)
    assert torch.equal(twin(x), dense(x))
    assert twin.plan is None
    torch.testing.assert_close(make_twin(copy.deepcopy(dense).train(), 1.0)(x), copy.deepcopy(dense).train()(x))


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("router", ["norm", "grid", "contrast"])
def test_routing_all_tokens_equals_the_dense_block(kind, router):
    dense = make_dense(kind)
    x = make_input(dense)
    twin = make_twin(dense, ALL, router)
    out = twin(x)
    assert twin.plan.indices.shape == (2, SIZE[0] * SIZE[1])
    torch.testing.assert_close(out, dense(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", DENSE)
def test_routing_half_differs_and_trains(kind):
    dense = make_dense(kind)
    x = make_input(dense)
    twin = make_twin(dense, 0.5, "linear")
    out = twin(x)
    assert out.shape == dense(x).shape
    assert (out - dense(x)).abs().max() > 1e-3
    assert twin.plan.kept().sum(dim=(1, 2)).tolist() == [12, 12]
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in twin.parameters())
    assert twin.router.proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("kind", DENSE)
def test_parameters_keep_their_names(kind):
    dense = make_dense(kind)
    before = list(dense.state_dict())
    twin = make_twin(dense, 0.5, "linear")
    assert list(dense.state_dict()) == before, "making the twin must not change the dense block"
    own = set(twin.state_dict()) - set(before)
    assert own == {"router.proj.weight", "router.proj.bias", "router.prior"}
    assert set(before) < set(twin.state_dict())

    fresh = make_twin(DENSE[kind]().double().eval(), ALL, "norm")
    assert set(fresh.state_dict()) == set(before)
    fresh.load_state_dict(dense.state_dict(), strict=True)
    x = make_input(dense)
    torch.testing.assert_close(fresh(x), dense(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", DENSE)
def test_batched_equals_a_loop_over_images(kind):
    dense = make_dense(kind)
    twin = make_twin(dense, 0.4, "linear")
    nn.init.normal_(twin.router.proj.weight)
    x = make_input(dense, batch=3, size=(5, 8))
    torch.testing.assert_close(twin(x), torch.cat([twin(image[None]) for image in x]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["AIFI post-norm", "AIFI pre-norm"])
def test_aifi_skips_bit_identically(kind):
    dense = make_dense(kind)
    twin = make_twin(dense, 0.5, "linear")
    x = make_input(dense)
    out = twin(x)
    kept = twin.plan.kept()[:, None].expand_as(out)
    assert torch.equal(out[~kept], x[~kept])
    assert (out[kept] != x[kept]).all()


def test_only_routed_tokens_reach_the_attention():
    dense = make_dense("C2PSA")
    twin = make_twin(dense, 0.5, "norm")
    seen = []
    twin.m[0].attn.qkv.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    twin(make_input(dense))
    assert seen == [(2, 64, 12, 1)]


def test_position_term_reads_the_grid():
    """A routed token far from the others sees no neighbour, one beside another does."""
    dense = make_dense("C2PSA")
    twin = make_twin(dense, 0.5, "norm")
    x = make_input(dense)
    out = twin(x)
    nn.init.zeros_(dense.m[0].attn.pe.conv.weight)  # parameters are shared
    assert (twin(x) - out).abs().max() > 1e-3


def test_areas_divide_the_routed_tokens():
    dense = make_dense("A2C2f area 4")
    for capacity, size, k in ((0.3, (6, 4), 8), (0.01, (6, 4), 4), (0.5, (5, 5), 16), (ALL, (5, 5), 24)):
        twin = make_twin(dense, capacity)
        out = twin(make_input(dense, size=size))
        assert twin.plan.indices.shape == (2, k)
        assert (twin.plan.indices.diff(dim=1) > 0).all(), "areas need raster order"
        assert out.shape == (2, 128, *size)


@pytest.mark.parametrize(("capacity", "size"), [(0.5, (1, 2)), (1.0, (1, 2)), (1.0, (5, 5))])
def test_map_that_cannot_be_cut_into_areas(capacity, size):
    dense = make_dense("A2C2f area 4")
    with pytest.raises(ValueError, match=r"^MoDA2C2f: a \dx\d map cannot be cut into 4 areas") as error:
        make_twin(dense, capacity)(make_input(dense, size=size))
    assert f"a {size[0]}x{size[1]} map" in str(error.value)
    assert "multiples of the model's stride" in str(error.value)


def test_a2c2f_without_attention():
    with pytest.raises(ValueError, match=r"^layer 3: this A2C2f has convolutions .*nothing to route; write A2C2f"):
        MoDA2C2f.from_dense(A2C2f(64, 64, n=1, a2=False), 0.5, "norm", "layer 3")


@pytest.mark.parametrize("twin", [MoDC2PSA, MoDAIFI])
def test_from_dense_errors_name_the_place(twin):
    dense = C2PSA(64, 64) if twin is MoDC2PSA else AIFI(32, 64, 4)
    with pytest.raises(ValueError, match=r"^layer 3: capacity must be a number in \(0, 1\], got 1\.5\."):
        twin.from_dense(dense, 1.5, "norm", "layer 3")
    with pytest.raises(ValueError, match=r"^layer 3: unknown router 'best', choose one of conv, linear, norm"):
        twin.from_dense(dense, 0.5, "best", "layer 3")


@pytest.mark.parametrize("version", ["11", "12"])
def test_whole_model_fuses_and_takes_dense_weights(version):
    """The published architecture is the routed one at capacity 1, and fusing Conv and BatchNorm changes neither."""
    dense = randomise(DetectionModel(f"yolo{version}n.yaml", nc=3, verbose=False)).eval()
    model = DetectionModel(f"yolo{version}n-mod-attention.yaml", nc=3, verbose=False).eval()
    keys = model.load_state_dict(dense.state_dict(), strict=False)
    assert keys.unexpected_keys == []
    assert keys.missing_keys
    assert all(".router." in key for key in keys.missing_keys)
    x = torch.rand(1, 3, 96, 64)
    with torch.inference_mode():
        mod_vision.set_capacity(model, 1.0)
        assert torch.equal(model(x)[0], dense(x)[0])
        mod_vision.set_capacity(model, 0.5)
        routed = model(x)[0]
        assert not torch.equal(routed, dense(x)[0])
        kept = [layer.plan.kept() for _, layer in routed_layers(model)]
        model.fuse(verbose=False)
        assert model.is_fused()
        fused = model(x)[0]
    for before, (_, layer) in zip(kept, routed_layers(model), strict=True):
        assert torch.equal(before, layer.plan.kept())
    torch.testing.assert_close(fused, routed, rtol=1e-3, atol=1e-2)
