"""The registry of routed rows: what a model YAML can name, and who reads, builds and writes each kind."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, TypeVar

from torch import nn


class RoutedRow(NamedTuple):
    """A routed row of a model YAML as it was read.

    Attributes:
        kind: What it is.
        args: Arguments without the mapping of options that can end them; the first one is the channels.
        options: Capacity, router and the kind's own.
        where: The row, for errors.
    """

    kind: type[RowKind]
    args: list[Any]
    options: dict[str, Any]
    where: str


class RowKind:
    """One kind of routed row; never instantiated, its class methods are the contract.

    Attributes:
        row_name: What a YAML calls it.
        own_options: Options besides capacity and router.
        any_size: Whether an export of it takes images of any size.
    """

    row_name: ClassVar[str]
    own_options: ClassVar[tuple[str, ...]] = ()
    any_size: ClassVar[bool] = True

    @classmethod
    def read_args(cls, args: list[Any], where: str) -> dict[str, Any]:
        """Check the arguments of a row but for the first, and return the options that stand among them.

        Raises:
            ValueError: If there are too few or too many.
        """
        return {}

    @classmethod
    def stand_in(cls, args: list[Any]) -> list[Any]:
        """Return module and arguments of the dense row that Ultralytics parses in its place."""
        return ["Conv", [args[0], 1, 1]]

    @classmethod
    def build(cls, dense: nn.Module, row: RoutedRow) -> nn.Module:
        """Return the routed layer for the parsed stand-in.

        Raises:
            ValueError: If it cannot be built.
        """
        raise NotImplementedError

    @classmethod
    def write_args(cls, args: list[Any], options: dict[str, Any]) -> dict[str, Any]:
        """Write those of the options into the arguments that stand among them, and return the others."""
        return options


KINDS: dict[str, type[RowKind]] = {}
Kind = TypeVar("Kind", bound=type[RowKind])


def routed_row(kind: Kind) -> Kind:
    """Register a kind of routed row under its `row_name`, by default the name of the class."""
    if "row_name" not in vars(kind):
        kind.row_name = kind.__name__
    KINDS[kind.row_name] = kind
    return kind
