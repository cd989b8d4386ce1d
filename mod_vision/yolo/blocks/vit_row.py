"""The row of `MoDViT`: `[channels, name of a ViT in timm]`; `Index` rows pick from its list of maps."""

from __future__ import annotations

from typing import Any

from torch import nn

from mod_vision.yolo.blocks.registry import RoutedRow, RowKind, routed_row


@routed_row
class ViTRow(RowKind):
    """A ViT of timm as a backbone."""

    row_name = "MoDViT"
    own_options = ("blocks", "window", "checkpoint", "pretrained")
    any_size = False

    @classmethod
    def read_args(cls, args: list[Any], where: str) -> dict[str, Any]:
        """Return no option, there are none among them."""
        if len(args) != 2:
            raise ValueError(
                f"{where}: {cls.row_name} takes [channels, name of a ViT in timm] and options such as "
                f"{{blocks: alternate}}, got {len(args)} arguments."
            )
        return {}

    @classmethod
    def build(cls, dense: nn.Module, row: RoutedRow) -> nn.Module:
        """Return the backbone."""
        from mod_vision.nn.vit import MoDViT  # timm takes seconds to import, other models do without

        if isinstance(dense, nn.Sequential):
            raise ValueError(f"{row.where}: {cls.row_name} cannot be repeated, write 1.")
        conv: Any = dense.conv
        return MoDViT(conv.out_channels, row.args[1], c1=conv.in_channels, where=row.where, **row.options)
