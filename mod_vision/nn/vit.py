"""MoDViT: any ViT of timm as a backbone whose blocks see the routed patches only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint as run_checkpointed

from mod_vision.nn.attention_windows import best_slots, window_slots
from mod_vision.nn.pyramid import SimplePyramid
from mod_vision.nn.timm_vit import build_vit
from mod_vision.nn.vit_blocks import pick_ropes, read_blocks, rope_of
from mod_vision.routing import RoutedLayer, gather_tokens, num_routed, scatter_tokens, tokens_to_map
from mod_vision.routing.padding import tokens_inside
from mod_vision.routing.plan import RoutingPlan, apply_gates, gate

Block = Callable[[torch.Tensor, "torch.Tensor | None", "torch.Tensor | None"], torch.Tensor]
POSITIONS = ("pos_embed", "cls_token", "reg_token")
GLOBAL_BLOCKS = 4  # blocks with global attention where the others have windows, as in ViTDet


class Group(NamedTuple):
    """Consecutive blocks that run on the same tokens.

    Attributes:
        first: First block.
        last: Last block, included.
        routed: Whether they are routed.
        windowed: Whether their attention stays in windows.
    """

    first: int
    last: int
    routed: bool
    windowed: bool


class BlockGroup(nn.Module):
    """Runs consecutive blocks on the same tokens: all of them, in one sequence or in windows.

    With windows, each has a copy of the prefix tokens (class and registers), of which the mean is kept.

    Args:
        group: The blocks; they are given at each call, the group does not own them.
        window: Side of a window in tokens, or None.
    """

    def __init__(self, group: Group, window: int | None) -> None:
        super().__init__()
        self.group, self.window = group, window if group.windowed else None

    @property
    def one_sequence(self) -> bool:
        """True if the blocks see all tokens in one sequence."""
        return self.window is None

    def select(self, x: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return gates (B, windows, k), or None, and indices (B, windows, k) of the patches (B, N, C) to compute."""
        return None, window_slots(size, self.window, x.device).expand(x.shape[0], -1, -1)

    def forward(
        self, x: torch.Tensor, blocks: Sequence[Block], ropes: Sequence[torch.Tensor | None], size: tuple[int, int]
    ) -> torch.Tensor:
        """Return tokens (B, prefix + N, C) after the blocks.

        Args:
            x: (B, prefix + N, C).
            blocks: Callables of tokens, rotary embedding and attention mask.
            ropes: Rotary embedding of each block, (N, D) or (heads, N, D), or None.
            size: (H, W) of the patches, N = H * W.
        """
        if self.one_sequence:
            for block, rope in zip(blocks, ropes, strict=True):
                x = block(x, rope, None)
            return x
        count = size[0] * size[1]
        prefix = x.shape[1] - count
        gates, indices = self.select(x[:, prefix:], size)
        mask = self._mask(indices, prefix, size)
        full = x if mask is None else F.pad(x, (0, 0, 0, 1))  # a token for what lies beyond the map
        first = torch.arange(prefix, device=x.device).expand(*indices.shape[:2], -1)
        windows = torch.cat((first, indices + prefix), dim=2)  # (B, windows, prefix + k)
        before = gather_tokens(full, windows.flatten(1)).view(-1, windows.shape[2], x.shape[2])
        after = before
        for block, rope in zip(blocks, pick_ropes(ropes, indices), strict=True):
            after = block(after, rope, mask)
        if gates is not None:
            after = apply_gates(before, after, F.pad(gates.flatten(0, 1), (prefix, 0), value=1.0).unsqueeze(-1))
        after = after.view(*windows.shape, -1)
        values = torch.cat((after[:, :, :prefix].mean(1), after[:, :, prefix:].flatten(1, 2)), dim=1)
        where = torch.cat((first[:, 0], (indices + prefix).flatten(1)), dim=1)
        return scatter_tokens(full, where, values)[:, : x.shape[1]]

    def _mask(self, indices: torch.Tensor, prefix: int, size: tuple[int, int]) -> torch.Tensor | None:
        """Return which tokens can be looked at, (B * windows, 1, 1, prefix + k), or None if all lie on the map."""
        if self.window is None or (size[0] % self.window == 0 and size[1] % self.window == 0):
            return None
        real = F.pad(indices.flatten(0, 1) < size[0] * size[1], (prefix, 0), value=True)
        return real[:, None, None]


class RoutedGroup(BlockGroup, RoutedLayer):
    """Runs consecutive blocks on the patches that a router selects, gathered once and scattered back once.

    Prefix tokens are never skipped. With windows, the best patches of each window are selected, so that all windows
    stay equally long.

    Args:
        group: The blocks.
        window: Side of a window in tokens, or None.
        dim: Channels.
        capacity: Share of tokens in (0, 1].
        router: Name of a router.
        where: Name of the layer in errors.
    """

    def __init__(self, group: Group, window: int | None, dim: int, capacity: Any, router: str, where: str) -> None:
        super().__init__(group, window)
        self.init_routing(dim, group.last - group.first + 1, capacity, router, where)

    @property
    def one_sequence(self) -> bool:
        """True if the blocks see all tokens in one sequence."""
        return self.dense and self.window is None

    def select(self, x: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return gates (B, windows, k), or None, and indices (B, windows, k) of the patches (B, N, C) to compute."""
        if self.dense:
            return super().select(x, size)
        logits, inside = self.router(x, size), tokens_inside(size)
        slots = window_slots(size, self.window, x.device)
        k = self._slots_per_window(logits, inside, slots.shape[1])
        scores, indices = best_slots(logits, slots, k, inside)
        gates = gate(scores).squeeze(-1) if self.router.learned else None
        real = torch.where(indices < x.shape[1], indices, indices[..., :1])  # the first one of a window is always real
        flat_gates = None if gates is None else gates.flatten(1).unsqueeze(-1)
        self.plan = RoutingPlan(logits, real.flatten(1), flat_gates, size, inside=inside)
        return gates, indices

    def _slots_per_window(self, logits: torch.Tensor, inside: torch.Tensor | None, slots: int) -> int:
        """Return how many tokens of a window are routed.

        Raises:
            ValueError: If the attention is windowed and the number of tokens is input-adaptive.
        """
        if not self.input_adaptive:
            return num_routed(slots, self.capacities[0])
        if self.window is not None:
            raise ValueError("thresholds need global attention: with `window`, all windows are equally long.")
        return int(self._count(logits, inside))


def make_groups(routed: Sequence[tuple[int, int]], depth: int, windowed: bool) -> list[Group]:
    """Cut the blocks into groups that run on the same tokens.

    A group ends where a routed range begins or ends, and where attention changes between windows and the whole map.
    """
    range_of = {i: r for r in routed for i in range(r[0], r[1] + 1)}
    every = max(1, depth // GLOBAL_BLOCKS)
    local = [windowed and (i + 1) % every != 0 for i in range(depth)]
    groups: list[Group] = []
    for i in range(depth):
        last = groups[-1] if groups else None
        if last and range_of.get(last.last) == range_of.get(i) and last.windowed == local[i]:
            groups[-1] = last._replace(last=i)
        else:
            groups.append(Group(i, i, i in range_of, local[i]))
    return groups


class MoDViT(nn.Module):
    """A ViT of timm with routed blocks and a simple feature pyramid.

    Patches are 16 x 16 pixels; models trained with others are built with 16, and timm resamples their pretrained patch
    embedding. Position embeddings are resampled to the size and shape of each image.

    Args:
        channels: Channels of P3, P4 and P5.
        name: Name of a ViT in timm, such as `vit_small_patch16_224` or `vit_small_patch16_dinov3`.
        capacity: Share of patches that pass the routed blocks, in (0, 1].
        router: Name of a router.
        blocks: Which blocks are routed: `alternate` for every second one, each by itself, or a list of block numbers
            and of `[first, last]` ranges; the blocks of a range share one routing.
        window: Side in patches of attention windows, None for global attention. Four evenly spread blocks stay global.
        checkpoint: Recompute each block's activations in the backward pass, which saves memory in training.
        pretrained: False, True to fetch timm's weights, or a file of weights.
        c1: Channels of the image.
        where: Name of the layer in errors.

    Raises:
        ValueError: If an argument is not valid, or weights do not fit.
        FileNotFoundError: If the file of weights does not exist.
        ConnectionError: If timm's weights cannot be fetched.
    """

    def __init__(
        self,
        channels: int,
        name: str = "vit_small_patch16_224",
        capacity: Any = 0.5,
        router: str = "conv",
        blocks: Any = "alternate",
        window: int | None = None,
        checkpoint: bool = False,
        pretrained: Any = False,
        c1: int = 3,
        where: str = "MoDViT",
    ) -> None:
        super().__init__()
        if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 2):
            raise ValueError(f"{where}: window must be a whole number of patches of at least 2, got {window!r}.")
        if not isinstance(checkpoint, bool):
            raise ValueError(f"{where}: checkpoint must be true or false, got {checkpoint!r}.")
        self.vit = build_vit(name, pretrained, c1, where)
        depth, dim = len(self.vit.blocks), self.vit.embed_dim
        groups = make_groups(read_blocks(blocks, depth, where), depth, window is not None)
        self.groups = nn.ModuleList(
            RoutedGroup(group, window, dim, capacity, router, where) if group.routed else BlockGroup(group, window)
            for group in groups
        )
        self.pyramid = SimplePyramid(dim, channels)
        self.checkpoint = checkpoint
        self._positions: tuple[Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the cached positions out of copies and checkpoints."""
        return {**self.__dict__, "_positions": None}

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return P3, P4 and P5, (B, channels, H / 8, W / 8) and so on, for images x (B, c1, H, W)."""
        return self.pyramid(self.features(x))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised last map (B, C, H / 16, W / 16) for images x (B, c1, H, W)."""
        patches = self.vit.patch_embed(x)  # (B, H / 16, W / 16, C)
        size = (int(patches.shape[1]), int(patches.shape[2]))  # numbers, also while an exporter traces
        start, rope = self._embed_positions(patches)
        prefix = self.vit.num_prefix_tokens
        patches = patches.flatten(1, 2) + start[:, prefix:]
        x = torch.cat((start[:, :prefix].expand(patches.shape[0], -1, -1), patches), dim=1)
        x = self.vit.norm_pre(x)
        for layer in cast("Iterable[BlockGroup]", self.groups):
            blocks = range(layer.group.first, layer.group.last + 1)
            x = layer(x, [self._block(i) for i in blocks], [rope_of(rope, i) for i in blocks], size)
        x = self.vit.norm(x)
        return tokens_to_map(x[:, prefix:], size)

    def _block(self, i: int) -> Block:
        """Return block i as a function of tokens, rotary embedding and mask."""
        block = self.vit.blocks[i]

        def run(x: torch.Tensor, rope: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
            extra: dict[str, Any] = {
                name: value for name, value in (("rope", rope), ("attn_mask", mask)) if value is not None
            }
            if self.checkpoint and self.training:
                return run_checkpointed(block, x, use_reentrant=False, **extra)
            return block(x, **extra)

        return run

    def _embed_positions(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what timm adds to patches (B, H, W, C), (1, prefix + H * W, C) with the prefix tokens, and the rope.

        While nothing of it is trained the last result is kept: resampling is slow, and ONNX has no operator for it.
        """
        weights = [w for w in (getattr(self.vit, name, None) for name in POSITIONS) if w is not None]
        trained = torch.is_grad_enabled() and any(w.requires_grad for w in weights)
        if trained or torch.compiler.is_compiling():
            self._positions = None
            return self._resample_positions(patches)
        state = tuple((w.data_ptr(), None if w.is_inference() else w._version) for w in weights)
        key = (int(patches.shape[1]), int(patches.shape[2]), patches.dtype, patches.device, state)
        kept = self._positions
        if kept is None or kept[0] != key:
            self._positions = kept = (key, self._resample_positions(patches))
        return kept[1]  # another thread may have kept those of its own images by now

    def _resample_positions(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Let timm add its positions to patches of zeros."""
        embedded = self.vit._pos_embed(torch.zeros_like(patches[:1]))
        return embedded if isinstance(embedded, tuple) else (embedded, None)
