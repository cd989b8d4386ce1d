"""The baselines and measures in `tools/` and `studies/` do what their papers and their names say."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from studies import scale, vit_baselines

TOOLS = Path(__file__).resolve().parent.parent / "tools"
VIT = "vit_tiny_patch16_224"


def tool(name: str):
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def nets():
    torch.manual_seed(0)
    return {name.partition(",")[0]: net for name, net in vit_baselines.baselines(VIT, 0.5, 320).items()}


def test_baselines_give_a_map_of_tokens(nets):
    images = torch.rand(2, 3, 320, 320)
    with torch.no_grad():
        for name, net in nets.items():
            assert net(images).shape == (2, 400, 192), name


def test_merging_nothing_is_dense(nets):
    dense = nets["dense"]
    images = torch.rand(2, 3, 320, 320)
    with torch.no_grad():
        tokens = vit_baselines.Trunk(dense.vit, vit_baselines.TokenMerging(dense.vit.blocks, 0))(images)
        torch.testing.assert_close(tokens, dense(images), rtol=1e-3, atol=1e-3)


def test_merged_tokens_are_the_most_similar_ones():
    """Two pairs of equal tokens merge into means that weigh 2; every place finds its token again."""
    values = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])[None]
    merging = vit_baselines.TokenMerging([], 2)
    place = torch.arange(6)[None]
    x, size, place = merging._merge(values, torch.ones(1, 6, 1), place, values)
    assert x.shape == (1, 4, 2)
    assert sorted(size.flatten().tolist()) == [1, 1, 2, 2]
    assert torch.equal(x[0, place[0]], values[0])


def test_all_windows_are_the_windowed_vit(nets):
    class Same(nn.Module):
        def forward(self, x):
            return x + 1

    blocks = [Same() for _ in range(3)]
    x = torch.rand(2, 400, 4)
    torch.testing.assert_close(vit_baselines.Windows(blocks, 1.0)(x), x + 3)
    half = vit_baselines.Windows(blocks, 0.5)(x) - x
    assert set(half.round().flatten().tolist()) == {2.0, 3.0}
    assert float((half > 2.5).float().mean()) == 0.5


def test_the_toys_lose_what_is_said():
    class Zero(nn.Linear):
        def forward(self, x):
            return 0 * super().forward(x)

    x = torch.rand(3, 10, 4) + 1
    for mask, changed in ((True, 4), (False, 5)):
        toy = vit_baselines.Toy(Zero(4, 4), 4, 0.5, mask)
        out = toy(x)
        assert ((out == 0).all(-1).sum(1) == changed).all(), "the mask loses the k-th token"
        out.sum().backward()
        assert (toy.router.weight.grad is None) == (not mask)


def test_merging_takes_layer_scale_and_normalised_keys():
    import timm

    vit = timm.create_model("deit3_small_patch16_224", img_size=64, class_token=False, global_pool="avg", qk_norm=True)
    for parameter in vit.eval().parameters():
        nn.init.normal_(parameter, std=0.1)
    x = torch.rand(2, 16, vit.embed_dim)
    with torch.no_grad():
        torch.testing.assert_close(vit_baselines.TokenMerging(vit.blocks, 0)(x), vit.blocks(x), rtol=1e-3, atol=1e-3)


def test_windows_need_their_size():
    with pytest.raises(ValueError, match="multiple of 160 pixels"):
        vit_baselines.baselines(VIT, 0.5, 256)


def test_exponent():
    assert scale.exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)


def test_quick_benchmark_notices_a_loss():
    losses = tool("benchmark").losses
    assert losses({"dense": 1.0, "a": 0.85, "b": 0.95}, {"dense": 1.0, "a": 1.0, "b": 1.0}) == {
        "a": pytest.approx(0.15)
    }


@pytest.mark.parametrize("name", [path.name for path in sorted(TOOLS.glob("*.py")) if path.name != "model_header.py"])
def test_tools_print_help(name):
    env = {**os.environ, "YOLO_CONFIG_DIR": os.environ.get("YOLO_CONFIG_DIR", "/tmp")}
    done = subprocess.run([sys.executable, TOOLS / name, "--help"], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "usage: python tools/" in done.stdout
