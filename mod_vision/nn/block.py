"""MixtureOfDepthsBlock: the routed transformer block on its own, for images and for language."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mod_vision.nn.attention import TransformerBlock
from mod_vision.routing import RoutedLayer, gather_tokens, make_plan, num_routed, scatter_tokens
from mod_vision.routing.plan import apply_gates, gate


class MixtureOfDepthsBlock(RoutedLayer):
    """A transformer block that only the top-k tokens pass (Mixture-of-Depths, arXiv 2404.02258).

    Images are not causal: top-k selection looks at all tokens, in training and at inference. In causal mode, top-k
    would let a token's fate depend on later ones, so a per-token predictor is trained to foresee the selection, and
    decides alone at inference (section 3.5 of the paper). Routed tokens then attend to earlier routed tokens only.

    Args:
        d_model: Channels C.
        capacity_factor: Share of tokens that pass the block, in (0, 1].
        num_heads: Attention heads, by default one per 64 channels.
        causal: Language-model mode.
        router: Name of a router, used unless `causal`: there each token must be scored by itself, by a linear map.

    Attributes:
        predictor_loss: In causal training, the loss of the predictor of the last forward: add it to the task's loss.

    Raises:
        ValueError: If the capacity or the router is not valid, or `d_model` does not divide into heads.

    Example:
        >>> block = MixtureOfDepthsBlock(d_model=128, capacity_factor=0.5)
        >>> block(torch.randn(2, 64, 128)).shape
        torch.Size([2, 64, 128])
    """

    def __init__(
        self,
        d_model: int,
        capacity_factor: float = 0.5,
        num_heads: int | None = None,
        causal: bool = False,
        router: str = "linear",
    ) -> None:
        super().__init__()
        if num_heads is None:
            num_heads = next(h for h in range(max(1, d_model // 64), 0, -1) if d_model % h == 0)
        self.block = TransformerBlock(d_model, num_heads, mlp_ratio=4.0)
        self.init_routing(d_model, 1, capacity_factor, router, where="MixtureOfDepthsBlock")
        self.causal = causal
        self.predictor_loss: torch.Tensor | None = None
        if causal:
            self.router = nn.Linear(d_model, 1)
            self.predictor = nn.Linear(d_model, 1)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the predictor's loss out of copies and checkpoints, like the plan."""
        return {**super().__getstate__(), "predictor_loss": None}

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return tokens (B, N, C) after the block."""
        if self.dense:
            return self.block(tokens, causal=self.causal)
        if not self.causal:
            plan = self.route(tokens, (1, tokens.shape[1]))
            routed = plan.take(tokens)
            return plan.put(tokens, routed, self.block(routed))
        return self._train_causal(tokens) if self.training else self._infer_causal(tokens)

    def _train_causal(self, tokens: torch.Tensor) -> torch.Tensor:
        """Route by top-k over the sequence, in order of time, and train the predictor to foresee it."""
        logits = self.router(tokens).squeeze(-1)
        n = tokens.shape[1]
        self.plan = plan = make_plan(logits, num_routed(n, self.capacities[0]), (1, n), raster=True)
        foreseen = self.predictor(tokens.detach()).squeeze(-1)
        self.predictor_loss = F.binary_cross_entropy_with_logits(foreseen, plan.kept()[:, 0].to(foreseen.dtype))
        routed = plan.take(tokens)
        return plan.put(tokens, routed, self.block(routed, causal=True))

    def _infer_causal(self, tokens: torch.Tensor) -> torch.Tensor:
        """Route the tokens that the predictor picks, each by itself; the number of them varies per sequence.

        The longest selection sets the length of the batch, which costs one host synchronisation.
        """
        picked = self.predictor(tokens).squeeze(-1) > 0
        k = int(picked.sum(dim=1).max())
        if k == 0:
            return tokens
        indices = picked.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :k]  # picked first, in time
        real = picked.gather(1, indices)
        earlier = torch.ones(k, k, dtype=torch.bool, device=tokens.device).tril()
        mask = earlier & real[:, None, None, :] | torch.eye(k, dtype=torch.bool, device=tokens.device)
        routed = gather_tokens(tokens, indices)
        gates = gate(self.router(routed).squeeze(-1))
        changed = apply_gates(routed, self.block(routed, mask=mask), gates)
        return scatter_tokens(tokens, indices, torch.where(real[..., None], changed, routed))
