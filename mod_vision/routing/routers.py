"""Routers: they score every token, (B, N, C) -> (B, N). The highest scores pass the heavy block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mod_vision.routing.gather import tokens_to_map


def standardise(scores: torch.Tensor) -> torch.Tensor:
    """Shift and scale scores (B, N) to mean 0 and deviation 1 within each image, 0 for a uniform one.

    The gradient is finite where all scores are equal, and the squares of half precision scores cannot overflow.
    """
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    centred = wide - wide.mean(dim=1, keepdim=True)
    return (centred * (centred.square().mean(dim=1, keepdim=True) + 1e-5).rsqrt()).to(scores.dtype)


class NormRouter(nn.Module):
    """Score a token by its L2 norm: free, without parameters, usable on pretrained weights (SparseViT's rule)."""

    learned = False

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Return standardised norms (B, N) of tokens (B, N, C) on a grid of `size` (H, W)."""
        return standardise(tokens.norm(dim=-1))


class ContrastRouter(nn.Module):
    """Score a token by its distance to the mean of its 3x3 neighbourhood: low where the image is uniform."""

    learned = False

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Return standardised local deviations (B, N) of tokens (B, N, C) on a grid of `size` (H, W)."""
        grid = tokens_to_map(tokens, size)
        local = F.avg_pool2d(grid, kernel_size=3, stride=1, padding=1, count_include_pad=False)
        return standardise((grid - local).flatten(2).norm(dim=1))


class LearnedRouter(nn.Module):
    """Base of routers that learn to score the normalised features of a token.

    What is learnt starts at zero, so that the gates start at identity up to the prior: the standardised token norm,
    without which the first selection would be a tie of all tokens.
    """

    learned = True

    def __init__(self) -> None:
        super().__init__()
        self.prior = nn.Parameter(torch.ones(1))

    @property
    def dim(self) -> int:
        """Channels of a token, as a number also while an exporter traces."""
        raise NotImplementedError

    def forward(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Return logits (B, N) of tokens (B, N, C) on a grid of `size` (H, W)."""
        features = F.layer_norm(tokens, (self.dim,))
        return self.score(features, size) + self.prior * standardise(tokens.norm(dim=-1))

    def score(self, features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Return the learned part of the logits (B, N) for normalised features (B, N, C)."""
        raise NotImplementedError


class LinearRouter(LearnedRouter):
    """Score each token by itself, by a linear map (Mixture-of-Depths, arXiv 2404.02258, section 3.4)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 1)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    @property
    def dim(self) -> int:
        """Channels of a token."""
        return self.proj.in_features

    def score(self, features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Return the learned part of the logits (B, N) for normalised features (B, N, C)."""
        return self.proj(features).squeeze(-1)


class ConvRouter(LearnedRouter):
    """Score a token together with its 3x3 neighbourhood: few channels, GELU, one convolution.

    Whether a token is part of an object shows in what is around it. Costs as much as 16 linear routers, which is 1 % of
    a transformer block of 128 channels.
    """

    HIDDEN = 16

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(dim, self.HIDDEN)
        self.proj = nn.Conv2d(self.HIDDEN, 1, 3, padding=1)
        for parameter in self.proj.parameters():
            nn.init.zeros_(parameter)

    @property
    def dim(self) -> int:
        """Channels of a token."""
        return self.reduce.in_features

    def score(self, features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Return the learned part of the logits (B, N) for normalised features (B, N, C)."""
        few = F.gelu(self.reduce(features))
        return self.proj(tokens_to_map(few, size)).flatten(1)


class RandomRouter(nn.Module):
    """Score tokens at random, anew in every forward: the baseline every comparison needs."""

    learned = False

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Return uniform random scores (B, N) for tokens (B, N, C)."""
        return torch.rand_like(tokens[..., 0])


class GridRouter(nn.Module):
    """Score tokens by a fixed low-discrepancy pattern: an even sub-sampling of the grid at any capacity.

    The pattern is the R2 sequence (M. Roberts, 2018), which generalises the golden ratio to two dimensions.
    """

    learned = False

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Return the pattern (B, N) for tokens (B, N, C) on a grid of `size` (H, W)."""
        height, width = size
        rows = torch.arange(height, device=tokens.device, dtype=torch.float32)
        cols = torch.arange(width, device=tokens.device, dtype=torch.float32)
        pattern = (rows[:, None] * 0.7548776662466927 + cols * 0.5698402909980532) % 1.0
        return pattern.flatten().to(tokens.dtype).expand(tokens.shape[0], -1)


ROUTERS: dict[str, type[nn.Module]] = {
    "conv": ConvRouter,
    "linear": LinearRouter,
    "norm": NormRouter,
    "contrast": ContrastRouter,
    "random": RandomRouter,
    "grid": GridRouter,
}


def build_router(name: str, dim: int, where: str = "router") -> nn.Module:
    """Build a router by name for tokens of `dim` channels.

    Raises:
        ValueError: If the name is unknown; the message lists the known ones.
    """
    if name not in list(ROUTERS):  # a list, so that a value that cannot be hashed gets the message too
        raise ValueError(f"{where}: unknown router {name!r}, choose one of {', '.join(ROUTERS)}.")
    return ROUTERS[name](dim)
