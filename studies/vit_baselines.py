"""Other ways to spend less on a ViT, on the same blocks and the same bench: token merging, window pruning, toys.

The baselines are written from their papers and pages for this comparison alone. All run the blocks of one timm ViT with
its weights and give a full map of tokens, as a detector needs it. Token merging is given as many FLOPs as one routing
for all blocks but the first two; the others cost what they cost.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

from mod_vision.cli.main import run_tool
from mod_vision.eval.cost.benchmark import Row, as_figures, save_figures, table
from mod_vision.eval.cost.conditions import conditions
from mod_vision.eval.cost.flops import executed_gflops
from mod_vision.eval.cost.latency import paired_latency
from mod_vision.eval.cost.memory import peak_megabytes
from mod_vision.files import writable_dir
from mod_vision.routing import Routed, gather_tokens, num_routed, scatter_tokens
from mod_vision.run_settings import BenchSettings

FIRST = 2  # blocks before it are dense in what selects once
WINDOW = 10


class Trunk(nn.Module):
    """Patch embedding of a timm ViT, and a way to run its blocks on the tokens (B, N, C)."""

    def __init__(self, vit: Any, run: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.vit, self.run = vit, run

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return tokens (B, N, C) of images (B, 3, H, W)."""
        x = self.vit.patch_embed(images)
        return self.run(self.vit._pos_embed(x))


class Toy(nn.Module):
    """The common toy: a Python loop over the batch, boolean masks, and a residual for the rest.

    PyPI's mixture-of-depth 1.2.0 selects with `>` in this way, which loses the k-th token, and multiplies with the raw
    score. The example in Ultralytics' glossary loops likewise, over indices, and its router gets no gradient.
    """

    def __init__(self, block: nn.Module, dim: int, capacity: float, mask: bool) -> None:
        super().__init__()
        self.block, self.capacity, self.mask = block, capacity, mask
        self.router = nn.Linear(dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return tokens (B, N, C)."""
        scores = self.router(x).squeeze(-1)
        best, indices = scores.topk(num_routed(x.shape[1], self.capacity), dim=1)
        out = x.clone()
        for i in range(len(x)):
            where = scores[i] > best[i, -1] if self.mask else indices[i]
            changed = self.block(x[i][where][None])[0]
            out[i][where] = changed * scores[i][where][:, None] if self.mask else changed
        return out


class TokenMerging:
    """Token merging (ToMe, arXiv 2210.09461): each block merges the r most similar pairs; the end unmerges them."""

    def __init__(self, blocks: Sequence[Any], r: int) -> None:
        self.blocks, self.r = blocks, r

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return tokens (B, N, C), those that were merged with the same value."""
        size = x.new_ones(x.shape[0], x.shape[1], 1)
        place = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        for block in self.blocks:
            changed, metric = self._attend(block.attn, block.norm1(x), size)
            x, size, place = self._merge(x + block.ls1(changed), size, place, metric)
            x = x + block.ls2(block.mlp(block.norm2(x)))
        return gather_tokens(x, place)

    @staticmethod
    def _attend(attn: Any, x: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return attention in proportion to the sizes (eq. 1 of the paper), and the mean keys."""
        b, n, c = x.shape
        q, k, v = attn.qkv(x).view(b, n, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = attn.q_norm(q), attn.k_norm(k)
        bias = size.log().transpose(1, 2)[:, None].expand(-1, 1, n, -1)
        out = F.scaled_dot_product_attention(q, k, v, bias)
        return attn.proj(out.transpose(1, 2).reshape(b, n, c)), k.mean(1)

    def _merge(
        self, x: torch.Tensor, size: torch.Tensor, place: torch.Tensor, metric: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Merge by bipartite soft matching; `place` says where each of the first tokens is now."""
        if x.shape[1] < 2:
            return x, size, place
        metric = F.normalize(metric, dim=-1)
        best, partner = (metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)).max(-1)
        order = best.argsort(dim=-1, descending=True)
        merged, kept = order[:, : self.r], order[:, self.r :]
        target = partner.gather(1, merged)
        sums = torch.cat((x * size, size), dim=-1)
        even, odd = sums[:, ::2], sums[:, 1::2]
        odd = odd.scatter_add(1, target[..., None].expand(-1, -1, odd.shape[2]), gather_tokens(even, merged))
        sums = torch.cat((gather_tokens(even, kept), odd), dim=1)
        new = torch.empty_like(place[:, : x.shape[1]])
        left = kept.shape[1]
        new[:, 1::2] = left + torch.arange(odd.shape[1], device=x.device)
        new.scatter_(1, 2 * kept, torch.arange(left, device=x.device).expand_as(kept))
        new.scatter_(1, 2 * merged, left + target)
        return sums[..., :-1] / sums[..., -1:], sums[..., -1:], new.gather(1, place)


class Windows:
    """Attention in windows; at a capacity, in those with the largest L2 norm only (SparseViT, arXiv 2303.17605)."""

    def __init__(self, blocks: Sequence[Any], capacity: float) -> None:
        self.blocks, self.capacity = blocks, capacity

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return tokens (B, N, C) of a square map."""
        for block in self.blocks[:FIRST]:
            x = self._in_windows(x, block)
        windows = self._cut(x)
        b, count, _, c = windows.shape
        best = windows.norm(dim=-1).mean(-1).topk(num_routed(count, self.capacity), dim=1).indices
        rows = windows.flatten(2)
        y = gather_tokens(rows, best).view(-1, WINDOW * WINDOW, c)
        for block in self.blocks[FIRST:]:
            y = block(y)
        return self._join(scatter_tokens(rows, best, y.view(b, best.shape[1], -1)).view_as(windows))

    def _in_windows(self, x: torch.Tensor, block: nn.Module) -> torch.Tensor:
        """Run a block in all windows."""
        windows = self._cut(x)
        return self._join(block(windows.flatten(0, 1)).view_as(windows))

    @staticmethod
    def _cut(x: torch.Tensor) -> torch.Tensor:
        """Return windows (B, count, tokens, C)."""
        b, n, c = x.shape
        side = round(n**0.5) // WINDOW
        return x.view(b, side, WINDOW, side, WINDOW, c).transpose(2, 3).reshape(b, side * side, -1, c)

    @staticmethod
    def _join(windows: torch.Tensor) -> torch.Tensor:
        """Return the map (B, N, C) of windows."""
        b, count, _, c = windows.shape
        side = round(count**0.5)
        return windows.view(b, side, side, WINDOW, WINDOW, c).transpose(2, 3).reshape(b, -1, c)


def baselines(name: str, capacity: float, imgsz: int) -> dict[str, nn.Module]:
    """Return the ways to run the blocks of a timm ViT, the dense one first; all share its weights.

    Raises:
        ValueError: If the map does not divide into windows, or merging cannot be as cheap as one routing.
    """
    if imgsz % (16 * WINDOW):
        raise ValueError(f"imgsz must be a multiple of {16 * WINDOW} pixels, for the windows, got {imgsz}.")
    vit: Any = timm.create_model(name, img_size=imgsz, class_token=False, global_pool="avg", num_classes=0).eval()
    blocks, dim = vit.blocks, vit.embed_dim

    def trunk(layers: Any) -> Trunk:
        return Trunk(vit, layers).eval()

    rest = blocks[FIRST:]
    alternate = nn.Sequential(*(Routed(b, dim, capacity) if i % 2 else b for i, b in enumerate(blocks)))
    found = {
        "dense": trunk(blocks),
        f"mod_vision, one routing, {capacity:g}": trunk(nn.Sequential(blocks[:FIRST], Routed(rest, dim, capacity))),
        f"mod_vision, every second, {capacity:g}": trunk(alternate),
        f"toy with masks, {capacity:g}": trunk(nn.Sequential(blocks[:FIRST], Toy(rest, dim, capacity, True))),
        f"toy with indices, {capacity:g}": trunk(nn.Sequential(blocks[:FIRST], Toy(rest, dim, capacity, False))),
        "windows, dense": trunk(Windows(blocks, 1.0)),
        f"windows pruned by norm, {capacity:g}": trunk(Windows(blocks, capacity)),
    }
    target = executed_gflops(found[f"mod_vision, one routing, {capacity:g}"], imgsz)
    low, high = 0, (imgsz // 16) ** 2 // 2
    if executed_gflops(trunk(TokenMerging(blocks, high)), imgsz) > target:
        raise ValueError(f"token merging cannot be as cheap as capacity {capacity:g}.")
    while low < high:  # the smallest r that costs no more than ours
        middle = (low + high) // 2
        costs = executed_gflops(trunk(TokenMerging(blocks, middle)), imgsz)
        low, high = (low, middle) if costs <= target else (middle + 1, high)
    return {**found, f"token merging, r = {low}": trunk(TokenMerging(blocks, low))}


def main(
    model: str = "vit_small_patch16_224",
    capacity: float = 0.5,
    imgsz: int = 640,
    batch: int = 1,
    threads: int = 2,
    repeats: int = 7,
    out: str | None = None,
) -> None:
    """Time all of them in turn; `out` takes the figures."""
    torch.set_num_threads(threads)
    if out:
        writable_dir(out)
    nets = baselines(model, capacity, imgsz)
    images = torch.rand(batch, 3, imgsz, imgsz)
    with torch.inference_mode():
        calls = {name: (lambda net=net: net(images)) for name, net in nets.items()}
        times = paired_latency(calls, repeats)
        rows = [
            Row(name, batch * executed_gflops(net, imgsz), times[name], peak_megabytes(calls[name]))
            for name, net in nets.items()
        ]
    held = {"model": model, **conditions(BenchSettings(imgsz, "cpu", threads, batch, repeats))}
    print(", ".join(f"{key} {value}" for key, value in held.items()))
    print(table(rows))
    if out:
        save_figures(as_figures(rows), held, Path(out) / f"peers-batch{batch}.json")
        print(f"figures in {Path(out)}")


if __name__ == "__main__":
    sys.exit(run_tool(main, str(__doc__)))
