"""ViT backbones: timm's own features at capacity 1, routed patches below, in YAML, trained, exported."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

import mod_vision
from mod_vision.nn.attention_windows import best_slots, window_slots
from mod_vision.nn.timm_vit import build_vit
from mod_vision.nn.vit import BlockGroup, MoDViT, RoutedGroup, make_groups, read_blocks
from mod_vision.routing import gather_tokens, routed_layers
from mod_vision.yolo.export.check import check_export
from mod_vision.yolo.export.exporter import export_model, input_tensors
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.loading import load_model

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


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "resnet50"}, r"'resnet50' is no ViT of timm; similar names are "),
        ({"name": "vit_smal_patch16_224"}, r"is no ViT of timm; similar names are vit_small_patch16_224"),
        ({"name": 3}, r"3 is no ViT of timm"),
        ({"blocks": "most"}, r"blocks must be alternate, or a list of block numbers from 0 to 11 .* got 'most'"),
        ({"blocks": []}, r"blocks must be"),
        ({"blocks": [12]}, r"blocks must be"),
        ({"blocks": [[3, 1]]}, r"blocks must be"),
        ({"blocks": [[1, 3], 2]}, r"blocks must be"),
        ({"blocks": [True]}, r"blocks must be"),
        ({"window": 1}, r"window must be a whole number of patches of at least 2, got 1"),
        ({"checkpoint": 1}, r"checkpoint must be true or false, got 1"),
        ({"pretrained": 3}, r"pretrained must be true, false or a file of weights, got 3"),
        ({"capacity": 0}, r"capacity must be a number in \(0, 1\]"),
        ({"router": "best"}, r"unknown router 'best'"),
    ],
)
def test_bad_options_name_the_row(options, words):
    with pytest.raises(ValueError, match=rf"^layer 0, row x: .*{words}"):
        MoDViT(8, **{"name": TINY, "where": "layer 0, row x", **options})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([-1, 1, "MoDViT", [128]], r"MoDViT takes \[channels, name of a ViT in timm\] .* got 1 arguments"),
        ([-1, 1, "MoDViT", [128, TINY, {"size": 3}]], r"unknown key size; known are capacity, router, blocks, window"),
        ([-1, 2, "MoDViT", [128, TINY]], r"MoDViT cannot be repeated"),
    ],
)
def test_bad_rows(row, words):
    d = copy.deepcopy(YOLO("yolo26-mod-vit-t.yaml").model.yaml)
    d["backbone"][0] = row
    with pytest.raises(ValueError, match=rf"^layer 0, row .*{words}"):
        DetectionModel(d, verbose=False)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_from_a_file(tmp_path, suffix):
    """With timm's own loader: a classifier is dropped, a position embedding of another size resampled."""
    torch.manual_seed(1)
    source = timm.create_model(TINY, img_size=96, num_classes=7)
    nn.init.normal_(source.norm.weight)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(source.state_dict(), path)
    else:
        pytest.importorskip("safetensors.torch").save_file(source.state_dict(), path)
    model = MoDViT(8, TINY, pretrained=str(path), capacity=1.0).eval()
    assert torch.equal(model.vit.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight)
    assert torch.equal(model.vit.norm.weight, source.norm.weight)


def test_weights_that_do_not_fit(tmp_path):
    other = timm.create_model("vit_small_patch16_224", num_classes=0).state_dict()
    torch.save(other, tmp_path / "small.pth")
    with pytest.raises(ValueError, match=r"^layer 0: the weights in .*small\.pth do not fit vit_tiny.*size mismatch"):
        MoDViT(8, TINY, pretrained=str(tmp_path / "small.pth"), where="layer 0")
    few = timm.create_model(TINY, num_classes=0).state_dict()
    few["blocks.0.stranger"] = few.pop("blocks.0.norm1.weight")
    torch.save(few, tmp_path / "few.pth")
    with pytest.raises(ValueError, match=r"missing keys blocks\.0\.norm1\.weight; unexpected keys blocks\.0\.str"):
        MoDViT(8, TINY, pretrained=str(tmp_path / "few.pth"))
    with pytest.raises(FileNotFoundError, match=r"layer 0: the file of pretrained weights nowhere\.pth does not exist"):
        MoDViT(8, TINY, pretrained="nowhere.pth", where="layer 0")


def test_weights_offline():
    """In a process that may not use the network, at all speed."""
    code = f"from mod_vision.nn.vit import MoDViT; MoDViT(8, {TINY!r}, pretrained=True, where='layer 0')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": os.devnull + "/none"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert "ConnectionError: layer 0: timm's weights of vit_tiny_patch16_224 cannot be fetched" in done.stderr
    assert "give a file: {pretrained: /path/to/weights.safetensors}" in done.stderr


# -------------------------------------------------------------------------------------------------------- with YOLO


def test_freezing_layer_by_layer():
    """Ultralytics freezes what begins with `model.` and the given name."""
    names = [name for name, _ in YOLO("yolo26-mod-vit-t.yaml").model.named_parameters()]
    for frozen in ("model.0.vit.patch_embed.", "model.0.vit.blocks.3.", "model.0.groups.", "model.0.pyramid."):
        assert any(name.startswith(frozen) for name in names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("kind", ["", "-seg"])
def test_train_freeze_save_load_predict(kind, tiny_data, tmp_path, photos):
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model(TINY, num_classes=0).state_dict(), weights)
    d = copy.deepcopy(YOLO(f"yolo26-mod-vit-t{kind}.yaml").model.yaml)
    d["backbone"][0][3][-1] |= {"pretrained": str(weights), "checkpoint": True, "window": 4}
    yaml_file = tmp_path / f"mine{kind}.yaml"
    yaml_file.write_text(repr({k: v for k, v in d.items() if k != "yaml_file"}))
    arguments = {"data": str(tiny_data), "epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "plots": False}
    arguments |= {"project": str(tmp_path), "optimizer": "AdamW", "device": "cpu", "amp": False}
    arguments["freeze"] = ["0.vit.patch_embed", "0.vit.blocks.0"]
    YOLO(yaml_file).train(**arguments, name="run")
    assert "guide" in (tmp_path / "run" / "results.csv").read_text()
    trained = YOLO(tmp_path / "run" / "weights" / "last.pt")
    start, end = torch.load(weights), trained.model.float().model[0].vit.state_dict()
    torch.testing.assert_close(end["blocks.0.mlp.fc1.weight"], start["blocks.0.mlp.fc1.weight"], rtol=1e-3, atol=1e-4)
    assert (end["blocks.5.mlp.fc1.weight"] - start["blocks.5.mlp.fc1.weight"]).abs().max() > 5e-4
    assert trained.predict(photos[0], imgsz=64, verbose=False)[0].boxes is not None
    assert len(mod_vision.route_maps(YOLO(tmp_path / "run" / "weights" / "last.pt"), photos[0], 64)) == 6

    weights.unlink()  # a trained model carries its weights: training on needs no others
    YOLO(tmp_path / "run" / "weights" / "last.pt").train(**arguments, name="again")
    assert YOLO(tmp_path / "again" / "weights" / "last.pt").model.yaml["backbone"][0][3][-1]["pretrained"] is False


def test_safe_loading(tmp_path):
    """Ultralytics can refuse pickles that hold anything but known classes."""
    YOLO("yolo26-mod-vit-t.yaml").save(tmp_path / "vit.pt")
    code = f"from ultralytics import YOLO; print(type(YOLO({str(tmp_path / 'vit.pt')!r}).model.model[0]).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ULTRALYTICS_SAFE_LOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip().endswith("MoDViT"), done.stderr


def test_onnx_export_equals_eager(photos, tmp_path):
    torch.manual_seed(0)
    yolo = load_model("yolo26-mod-vit-t.yaml")
    for _, layer in routed_layers(yolo.model):
        nn.init.normal_(layer.router.proj.weight, std=3.0)
    nn.init.normal_(yolo.model.model[0].vit.pos_embed, std=0.1)
    yolo.save(tmp_path / "vit.pt")
    check = check_export(*export_model(tmp_path / "vit.pt", "onnx", 96), input_tensors(photos[:5], 96))
    assert check.passed, check


@torch.no_grad()
def test_compiles_into_one_graph():
    """No host synchronisation, no break: what CUDA graphs and torch.compile need."""
    model = MoDViT(8, TINY, blocks=[1, [4, 6]], window=3).eval()
    x = torch.rand(1, 3, 64, 96)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for a, b in zip(compiled(x), model(x), strict=True):
        torch.testing.assert_close(a, b)


def test_capacity_of_the_row_and_of_a_block():
    model = YOLO("yolo26-mod-vit-t.yaml").model
    mod_vision.set_capacity(model, {0: 0.25})
    assert model.yaml["backbone"][0][3][-1]["capacity"] == 0.25
    assert {layer.capacities for _, layer in routed_layers(model)} == {(0.25,)}
    first = next(name for name, _ in routed_layers(model))
    mod_vision.set_capacity(model, {first: 0.5})
    assert dict(routed_layers(model))[first].capacities == (0.5,)


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
