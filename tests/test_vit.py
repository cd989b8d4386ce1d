"""ViT backbones in plain torch: timm's own features at capacity 1, routed patches in groups and windows below."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mod_vision.nn.attention_windows import best_slots, window_slots
from mod_vision.nn.timm_vit import build_vit
from mod_vision.nn.vit import BlockGroup, MoDViT, RoutedGroup, make_groups, read_blocks
from mod_vision.routing import gather_tokens, routed_layers
from mod_vision.yolo.model.capacity import set_capacity

ALL = 0.9999999  # below 1, so patches are gathered, and rounded up to all of them
TINY = "vit_tiny_patch16_224"
FAMILIES = {
    "plain ViT": TINY,
    "DeiT III": "deit3_small_patch16_224",
    "DINOv2 with registers": "vit_small_patch14_reg4_dinov2",
    "DINOv3": "vit_small_patch16_dinov3",
    "EVA-02": "eva02_tiny_patch14_224",
    "mixed rotary": "vit_small_patch16_rope_mixed_224",
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """A family's own model of timm, three blocks deep to be quick, in float64, with weights that matter."""
    torch.manual_seed(0)
    name = FAMILIES[request.param]
    reference = build_vit(name, False, 3, "test").double().eval()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.05 if parameter.ndim > 1 else 0.3)
    return name, reference


def twin_of(family, **options) -> MoDViT:
    """Build the routed backbone with the reference's weights."""
    name, reference = family
    model = MoDViT(8, name, router=options.pop("router", "norm"), **options).double().eval()
    model.vit.load_state_dict(reference.state_dict())
    return model


def features(reference: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return reference.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[-1]


@torch.no_grad()
def test_features_are_those_of_timm(family):
    for size in ((64, 64), (64, 96)):
        x = torch.randn(2, 3, *size).double()
        expected = features(family[1], x)
        model = twin_of(family, capacity=1.0)
        torch.testing.assert_close(model.features(x), expected, rtol=0, atol=1e-12)
        for blocks in ("alternate", [[1, 10]], [0, [3, 5], 11]):
            everything = twin_of(family, capacity=ALL, blocks=blocks)
            torch.testing.assert_close(everything.features(x), expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(twin_of(family, capacity=1.0, window=8).features(x), expected, rtol=0, atol=1e-9)


@torch.no_grad()
def test_an_image_does_not_depend_on_the_batch(family):
    x = torch.randn(2, 3, 64, 96).double()
    for options in ({"blocks": [[2, 9]]}, {"window": 3}):
        model = twin_of(family, capacity=0.4, **options)
        one_by_one = torch.cat([model.features(image[None]) for image in x])
        torch.testing.assert_close(model.features(x), one_by_one, rtol=0, atol=1e-9)


def test_pyramid():
    levels = MoDViT(8, TINY)(torch.rand(1, 3, 64, 96))
    assert [tuple(level.shape) for level in levels] == [(1, 8, 8, 12), (1, 8, 4, 6), (1, 8, 2, 3)]


# -------------------------------------------------------------------------------------------------------- the groups


class AddOne(nn.Module):
    """Counts the blocks that a token passed, and notes how many tokens it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x, rope=None, mask=None):
        self.seen.append(tuple(x.shape))
        return x + 1


@pytest.mark.parametrize("window", [None, 2, 3])
def test_prefix_tokens_always_pass_and_skipped_ones_never(window):
    group = make_groups([(0, 2)], 12, False)[0]._replace(windowed=window is not None)
    layer = RoutedGroup(group, window, 4, 0.5, "norm", "layer 0")
    x = torch.randn(2, 3 + 24, 4)
    block = AddOne()
    out = layer(x, [block] * 3, [None] * 3, (4, 6))
    passed = (out - x)[..., 0].round()
    assert passed[:, :3].eq(3).all()
    kept = layer.plan.kept().flatten(1)
    assert passed[:, 3:][kept].eq(3).all()
    assert torch.equal(out[:, 3:][~kept], x[:, 3:][~kept])
    slots = 24 if window is None else window * window
    windows = 1 if window is None else -(-4 // window) * -(-6 // window)
    assert block.seen == [(2 * windows, 3 + -(-slots // 2), 4)] * 3
    assert torch.equal(layer.depth_map(), layer.plan.kept() * 3)


def test_slots_of_windows():
    assert window_slots((2, 3), None, torch.device("cpu")).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert window_slots((2, 3), 2, torch.device("cpu")).tolist() == [[0, 1, 3, 4], [2, 6, 5, 6]]
    scores, indices = best_slots(torch.tensor([[0.0, 1, 2, 3, 4, 5]]), window_slots((2, 3), 2, torch.device("cpu")), 3)
    assert indices.tolist() == [[[4, 3, 1], [5, 2, 6]]]
    assert scores[0, 0].tolist() == [4, 3, 1]


@torch.no_grad()
def test_what_lies_beyond_the_map_is_not_looked_at():
    """A window that reaches beyond the map equals the attention of its part of the map alone."""
    model = MoDViT(8, TINY, capacity=1.0, window=3).double().eval()
    layer = next(layer for layer in model.groups if layer.window)
    x = torch.randn(1, 1 + 4 * 4, 192).double()
    block = [model._block(layer.group.first)]
    out = layer(x, block, [None], (4, 4))
    corner = x[:, [0, 16]]  # the class token and the only patch of the last window
    torch.testing.assert_close(out[:, 16], block[0](corner, None, None)[:, 1], rtol=0, atol=1e-12)


def test_gradients_reach_everything():
    model = MoDViT(8, TINY, capacity=0.5, blocks=[1, [4, 6]], window=3)
    out = model(torch.rand(2, 3, 64, 96))
    sum(level.square().mean() for level in out).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []
    assert all(layer.router.proj.weight.grad.abs().max() > 0 for _, layer in routed_layers(model))


def test_checkpointing_gives_the_same_gradients():
    torch.manual_seed(0)
    plain = MoDViT(8, TINY, capacity=0.5).double()
    saving = MoDViT(8, TINY, capacity=0.5, checkpoint=True).double()
    saving.load_state_dict(plain.state_dict())
    x = torch.rand(1, 3, 64, 64).double()
    for model in (plain, saving):
        sum(level.square().sum() for level in model(x)).backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, msg=name, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_kept_positions_follow_the_weights():
    """At inference the resampled embedding is kept, until size or weights change; EMA changes them in place."""
    model = MoDViT(8, TINY, capacity=1.0).eval()
    x = torch.rand(1, 3, 64, 64)
    first = model.features(x)
    assert torch.equal(model.features(x), first)
    model.features(torch.rand(1, 3, 64, 96))
    assert torch.equal(model.features(x), first)
    model.vit.pos_embed.mul_(0.5)
    changed = model.features(x)
    assert not torch.equal(changed, first)
    torch.testing.assert_close(changed, features(model.vit, x))
    assert copy.deepcopy(model)._positions is None


def test_blocks():
    assert read_blocks("alternate", 4, "w") == [(1, 1), (3, 3)]
    assert read_blocks([3, [0, 1]], 4, "w") == [(0, 1), (3, 3)]
    groups = make_groups([(1, 2), (3, 3)], 6, False)
    assert [(g.first, g.last, g.routed) for g in groups] == [(0, 0, False), (1, 2, True), (3, 3, True), (4, 5, False)]
    windowed = make_groups([(4, 9)], 12, True)
    assert [g.first for g in windowed if not g.windowed] == [2, 5, 8, 11]
    assert [(g.first, g.last) for g in windowed if g.routed] == [(4, 4), (5, 5), (6, 7), (8, 8), (9, 9)]
    kinds = {type(layer) for layer in MoDViT(8, TINY).groups}
    assert kinds == {BlockGroup, RoutedGroup}


@torch.no_grad()
def test_compiles_into_one_graph():
    """No host synchronisation, no break: what CUDA graphs and torch.compile need."""
    model = MoDViT(8, TINY, blocks=[1, [4, 6]], window=3).eval()
    x = torch.rand(1, 3, 64, 96)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for a, b in zip(compiled(x), model(x), strict=True):
        torch.testing.assert_close(a, b)


def test_gathering_is_skipped_at_capacity_one(monkeypatch):
    model = MoDViT(8, TINY, capacity=1.0).eval()
    calls = []
    monkeypatch.setattr("mod_vision.nn.vit.gather_tokens", lambda *a: calls.append(1) or gather_tokens(*a))
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 64))
        assert calls == []
        set_capacity(model, 0.5)
        model(torch.rand(1, 3, 64, 64))
    assert len(calls) == 6
