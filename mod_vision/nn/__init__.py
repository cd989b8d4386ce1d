"""Blocks that use routing, in plain torch."""

from mod_vision.nn.attention import TransformerBlock
from mod_vision.nn.block import MixtureOfDepthsBlock
from mod_vision.nn.stage import MoDStage

__all__ = ("MixtureOfDepthsBlock", "MoDStage", "TransformerBlock")
