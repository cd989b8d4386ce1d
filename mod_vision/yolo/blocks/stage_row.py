"""The row of `MoDStage`: `[channels, capacity, num_heads]`, parsed as 1x1 convolutions that repeat."""

from __future__ import annotations

from typing import Any

from torch import nn

from mod_vision.nn import MoDStage
from mod_vision.yolo.blocks.registry import RoutedRow, RowKind, routed_row


@routed_row
class StageRow(RowKind):
    """A stage of transformer blocks; input channels, output channels and repeats are those of the stand-in."""

    row_name = MoDStage.__name__

    @classmethod
    def read_args(cls, args: list[Any], where: str) -> dict[str, Any]:
        """Return the capacity, if it is an argument."""
        if not 1 <= len(args) <= 3:
            raise ValueError(
                f"{where}: {cls.row_name} takes [channels, capacity, num_heads] and options such as {{router: norm}}, "
                f"got {len(args)} arguments."
            )
        return {"capacity": args[1]} if len(args) > 1 else {}

    @classmethod
    def build(cls, dense: nn.Module, row: RoutedRow) -> nn.Module:
        """Return the stage."""
        convs: Any = dense if isinstance(dense, nn.Sequential) else [dense]
        c1, c2 = convs[0].conv.in_channels, convs[0].conv.out_channels
        heads = row.args[2] if len(row.args) > 2 else None
        return MoDStage(c1, c2, len(convs), num_heads=heads, where=row.where, **row.options)

    @classmethod
    def write_args(cls, args: list[Any], options: dict[str, Any]) -> dict[str, Any]:
        """Write the capacity where it is an argument."""
        if len(args) > 1 and "capacity" in options:
            args[1] = options.pop("capacity")
        return options
