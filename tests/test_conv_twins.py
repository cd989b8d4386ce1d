"""Tile-routed twins against the dense Ultralytics blocks they stand for."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from conftest import randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from ultralytics.nn.modules.block import C3, Bottleneck, C2f, C3k2, HGBlock, RepC3, RepNCSPELAN4
from ultralytics.nn.modules.conv import Conv
from ultralytics.nn.tasks import DetectionModel

import mod_vision
from mod_vision.routing import routed_layers
from mod_vision.yolo.twins import TWINS

ALL = 0.9999999  # below 1, so tiles are gathered, and rounded up to all of them
DENSE = {
    "Bottleneck": lambda: Bottleneck(8, 8),
    "C3": lambda: C3(8, 12, 2),
    "C2f": lambda: C2f(8, 12, 2, True),
    "C3k2 with bottlenecks": lambda: C3k2(8, 12, 2),
    "C3k2 with C3k": lambda: C3k2(8, 12, 1, True),
    "C3k2 with two C3k": lambda: C3k2(8, 12, 2, True),
    "RepNCSPELAN4": lambda: RepNCSPELAN4(8, 12, 8, 4, 1),
}
WHOLE_ONLY = {
    "C2f without shortcut": lambda: C2f(8, 12, 2, False),
    "RepC3": lambda: RepC3(8, 12, 2, 0.5),
    "RepC3 of one width": lambda: RepC3(8, 8, 1, 1.0),
    "HGBlock": lambda: HGBlock(8, 4, 12, 3, 2),
    "HGBlock, light, residual": lambda: HGBlock(8, 4, 8, 5, 2, lightconv=True, shortcut=True),
    "Conv": lambda: Conv(8, 12, 3, 1),
    "Conv of stride 2": lambda: Conv(8, 12, 3, 2),
}
SCOPES = [(kind, scope) for kind in DENSE for scope in ("inner", "block")] + [(kind, "block") for kind in WHOLE_ONLY]
ONE_CHAIN = [s for s in SCOPES if s not in (("C3k2 with two C3k", "inner"), ("RepNCSPELAN4", "inner"))]


def make_dense(kind: str) -> nn.Module:
    return randomise((DENSE | WHOLE_ONLY)[kind]()).double().eval()


def make_twin(dense: nn.Module, capacity: float, scope: str, border: str = "halo", tile: int = 4, router="norm"):
    options = {"tile": tile, "border": border} | ({} if isinstance(dense, Conv) else {"scope": scope})
    twin = TWINS[f"MoD{type(dense).__name__}"].from_dense(dense, capacity, router, "layer 3", **options)
    return twin.double().train(dense.training)


def on_output(plan, out: torch.Tensor) -> torch.Tensor:
    """Return the routed pixels of an output map, which a stride makes smaller than the one that was scored."""
    stride = -(-plan.size[0] // out.shape[2])
    return plan.kept()[:, None, ::stride, ::stride].expand_as(out)


@pytest.mark.parametrize(("kind", "scope"), SCOPES)
def test_capacity_one_is_the_dense_block(kind, scope):
    dense = make_dense(kind)
    x = torch.randn(2, 8, 9, 6).double()
    twin = make_twin(dense, 1.0, scope)
    assert torch.equal(twin(x), dense(x))
    assert twin.plan is None
    twin.set_capacity(0.5)
    twin(x)
    twin.set_capacity(1.0)
    assert torch.equal(twin.forward_split(x), dense(x))


@pytest.mark.parametrize(("kind", "scope"), SCOPES)
@pytest.mark.parametrize("size", [(8, 12), (7, 10)])
def test_all_tiles_with_their_neighbourhood_equal_the_dense_block(kind, scope, size):
    """Outputs in eval, and outputs, statistics and gradients in training."""
    dense = make_dense(kind)
    x = torch.randn(2, 8, *size).double()
    torch.testing.assert_close(make_twin(dense, ALL, scope)(x), dense(x), rtol=0, atol=1e-12)

    dense.train()
    twin = make_twin(copy.deepcopy(dense), ALL, scope)
    out, expected = twin(x), dense(x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    out.square().sum().backward()
    expected.square().sum().backward()
    own = dict(twin.named_parameters())
    for name, parameter in dense.named_parameters():
        torch.testing.assert_close(own[name].grad, parameter.grad, rtol=1e-8, atol=1e-8)
    for name, buffer in dense.named_buffers():
        torch.testing.assert_close(twin.get_buffer(name), buffer)


@given(
    st.sampled_from(ONE_CHAIN),
    st.integers(1, 3),
    st.tuples(st.integers(4, 13), st.integers(4, 13)),
    st.floats(0.05, 0.95),
    st.sampled_from([2, 4, 6]),
)
@settings(max_examples=60, deadline=None)
def test_computed_tiles_equal_the_dense_block_exactly(case, batch, size, capacity, tile):
    dense = make_dense(case[0])
    x = torch.randn(batch, 8, *size).double()
    twin = make_twin(dense, capacity, case[1], tile=tile if tile <= max(size) else 2)
    out, expected = twin(x), dense(x)
    kept = on_output(twin.plan, out)
    torch.testing.assert_close(out[kept], expected[kept], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "scope"), SCOPES)
@pytest.mark.parametrize("border", ["pad", "halo"])
def test_half_of_the_tiles(kind, scope, border):
    """Routed tiles are computed, others are not, an image does not depend on the batch, and everything trains."""
    dense = make_dense(kind)
    x = torch.randn(3, 8, 12, 8).double()
    twin = make_twin(dense, 0.5, scope, border, router="linear")
    nn.init.normal_(twin.router.proj.weight)
    out = twin(x)
    assert twin.plan.grid == (3, 2)
    assert twin.plan.indices.shape == (3, 3)
    assert twin.plan.kept().shape == (3, 12, 8)
    torch.testing.assert_close(out, torch.cat([twin(image[None]) for image in x]), rtol=0, atol=1e-12)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in twin.parameters())
    assert twin.router.proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize(("kind", "scope"), SCOPES)
def test_skipped_tiles_cost_nothing(kind, scope):
    """The 3x3 convolutions see the routed tiles and nothing else."""
    dense = make_dense(kind)
    twin = make_twin(dense, 0.25, scope, "pad")
    seen = []
    original = nn.functional.conv2d

    def spy(x, weight, *args, **kwargs):
        if weight.shape[-1] >= 3:
            seen.append(x.shape)
        return original(x, weight, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "conv2d", spy)
        twin(torch.randn(2, 8, 16, 16).double())
    inner = [shape for shape in seen if shape[0] == 2 * 4 and shape[2:] == (4, 4)]
    dense_convs = 2 if (kind, scope) == ("RepNCSPELAN4", "inner") else 0  # those after the routed chains
    assert inner
    assert len(seen) - len(inner) == dense_convs


def test_skipped_tiles_ride_the_residual():
    dense = make_dense("Bottleneck")
    twin = make_twin(dense, 0.5, "inner", router="linear")
    x = torch.randn(2, 8, 12, 8).double()
    out = twin(x)
    kept = on_output(twin.plan, out)
    assert torch.equal(out[~kept], x[~kept])
    assert (out[kept] != x[kept]).all()


def test_skipped_tiles_take_the_coarse_convolution():
    dense = make_dense("C2f without shortcut")
    twin = make_twin(dense, 0.5, "block")
    x = torch.randn(2, 8, 12, 8).double()
    out = twin(x)
    kept = on_output(twin.plan, out)
    skipped = twin.skip(twin.skip.pool(x), (12, 8))
    assert torch.equal(out[~kept], skipped[~kept])


@pytest.mark.parametrize(("kind", "scope"), SCOPES)
def test_parameters_keep_their_names(kind, scope):
    dense = make_dense(kind)
    before = set(dense.state_dict())
    twin = make_twin(dense, 0.5, scope, router="linear")
    assert set(dense.state_dict()) == before, "making the twin must not change the dense block"
    added = {"router.proj.weight", "router.proj.bias", "router.prior"}
    added |= {"skip.conv.weight", "skip.conv.bias"} if scope == "block" else set()
    assert set(twin.state_dict()) - before == added
    again = pickle.loads(pickle.dumps(twin))
    x = torch.randn(1, 8, 8, 8).double()
    assert torch.equal(again(x), twin(x))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tile": 0}, r"tile must be a whole number of pixels from 2 to 64, got 0"),
        ({"tile": 8.0}, r"tile must be a whole number of pixels from 2 to 64, got 8\.0"),
        ({"tile": True}, r"tile must be a whole number"),
        ({"border": "zero"}, r"unknown border 'zero', choose one of pad, halo"),
        ({"scope": "all"}, r"unknown scope 'all', choose one of inner, block"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=rf"^layer 3: {words}"):
        TWINS["MoDC3k2"].from_dense(C3k2(8, 8, 1), 0.5, "norm", "layer 3", **options)


@pytest.mark.parametrize("kind", ["RepC3", "HGBlock"])
def test_no_bottleneck_to_route(kind):
    with pytest.raises(ValueError, match=rf"^layer 3: this {kind} has no residual to ride .*\{{scope: block\}}\.$"):
        make_twin(make_dense(kind), 0.5, "inner")


def test_no_residual_to_ride():
    with pytest.raises(ValueError, match=r"^layer 3: this C2f has no residual to ride .*\{scope: block\}\.$"):
        make_twin(C2f(8, 8, 1, False), 0.5, "inner")


@pytest.mark.parametrize("scope", ["inner", "block"])
def test_attention_cannot_be_cut_into_tiles(scope):
    block = C3k2(128, 128, 1, attn=True)
    with pytest.raises(ValueError, match=r"^layer 3: \w+ looks at the whole map, tiles of it cannot be routed\.$"):
        make_twin(block, 0.5, scope)


def test_tile_larger_than_the_map():
    twin = make_twin(make_dense("C3"), 0.5, "inner", tile=8)
    with pytest.raises(ValueError, match=r"^layer 3: a tile of 8 pixels is larger than the 4x6 map; use a smaller"):
        twin(torch.randn(1, 8, 4, 6).double())
    assert twin(torch.randn(1, 8, 4, 9).double()).shape == (1, 12, 4, 9)


def test_stride_that_does_not_divide_the_tile():
    with pytest.raises(ValueError, match="layer 3: stride 2 does not divide a tile of 3"):
        make_twin(make_dense("Conv of stride 2"), 0.5, "block", tile=3)


@pytest.mark.parametrize(
    ("kind", "scope"), [("C3k2 with C3k", "inner"), ("C3", "block"), ("Conv of stride 2", "block")]
)
@pytest.mark.parametrize("size", [(8, 12), (7, 10)])
@torch.no_grad()
def test_compiles_into_one_graph(kind, scope, size):
    """No host synchronisation, no break: what CUDA graphs and torch.compile need."""
    twin = make_twin(make_dense(kind), 0.5, scope)
    x = torch.randn(2, 8, *size).double()
    torch.testing.assert_close(torch.compile(twin, backend="eager", fullgraph=True)(x), twin(x))


@pytest.mark.parametrize("name", ["yolo26n-mod-conv.yaml", "yolo26n-mod-conv-seg.yaml"])
def test_whole_model_fuses_and_takes_dense_weights(name):
    """The published architecture is the routed one at capacity 1, and fusing Conv and BatchNorm changes neither."""
    from ultralytics.nn.tasks import SegmentationModel

    kind = SegmentationModel if "seg" in name else DetectionModel
    dense = randomise(kind(name.replace("-mod-conv", ""), nc=3, verbose=False)).eval()
    model = kind(name, nc=3, verbose=False).eval()
    keys = model.load_state_dict(dense.state_dict(), strict=False)
    assert keys.unexpected_keys == []
    assert all(".router." in key or ".skip." in key for key in keys.missing_keys)

    def maps(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        found = []
        handle = net.model[-1].register_forward_pre_hook(lambda module, args: found.extend(args[0]))
        net(x)
        handle.remove()
        return torch.cat([level.flatten() for level in found])

    x = torch.rand(1, 3, 96, 64)
    with torch.inference_mode():
        mod_vision.set_capacity(model, 1.0)
        assert torch.equal(maps(model, x), maps(dense, x))
        mod_vision.set_capacity(model, 0.5)
        routed = maps(model, x)
        assert not torch.equal(routed, maps(dense, x))
        kept = [layer.plan.kept() for _, layer in routed_layers(model)]
        model.fuse(verbose=False)
        assert model.is_fused()
        torch.testing.assert_close(maps(model, x), routed, rtol=1e-3, atol=1e-2)
        for before, (_, layer) in zip(kept, routed_layers(model), strict=True):
            assert torch.equal(before, layer.plan.kept())
        mod_vision.set_capacity(model, 1.0)
        torch.testing.assert_close(maps(model, x), maps(dense.fuse(verbose=False), x))


def test_a_fused_block_can_be_routed():
    model = randomise(DetectionModel("yolo26n.yaml", nc=3, verbose=False)).eval().fuse(verbose=False)
    x = torch.rand(1, 16, 16, 16)
    twin = TWINS["MoDConv"].from_dense(model.model[1], ALL, "norm", "layer 1", border="halo").eval()
    torch.testing.assert_close(twin(x), model.model[1](x))
    twin.set_capacity(1.0)
    assert torch.equal(twin(x), model.model[1](x))
