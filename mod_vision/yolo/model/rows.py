"""Routed rows in model YAMLs.

Ultralytics parses a row by looking its module up among its own, with rules for channels and repeats per module. So a
routed row is first parsed as a dense stand-in, with Ultralytics' own rules in any version, and then replaced:

* the rows of `blocks/attention.py` are parsed as the dense block and become its routed form;
* `MoDStage` is parsed as 1x1 convolutions, from which input channels, output channels and repeats are read;
* `MoDViT` likewise; its list of maps is picked from by Ultralytics' `Index` rows.

A routed block takes the arguments of the dense block; `MoDStage` takes `[channels, capacity, num_heads]`, `MoDViT`
`[channels, name]`. All can end with options: `{capacity: 0.25, router: norm}`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from torch import nn
from ultralytics.utils import LOGGER

from mod_vision.errors import one_line
from mod_vision.limits import MAX_REPEATS, check_nodes
from mod_vision.yolo.blocks import KINDS
from mod_vision.yolo.blocks.base import take_place
from mod_vision.yolo.blocks.old_names import REMOVED, advice
from mod_vision.yolo.blocks.registry import RoutedRow
from mod_vision.yolo.model.offline import builds_are_offline, offline
from mod_vision.yolo.model.settings import ModSettings, check_options
from mod_vision.yolo.model.size_limits import check_numbers
from mod_vision.yolo.model.windows import add_windows, say_attention

OUR_NAMES = (*KINDS, *REMOVED)
ParseModel = Callable[..., tuple[nn.Sequential, list[int]]]


def check_model_yaml(d: dict[str, Any]) -> None:
    """Check the keys and the shape of the rows of a model YAML, whichever layers it has.

    Raises:
        ValueError: If a key is missing, a value or a row has another form, or a number is beyond all models.
    """
    name = d.get("yaml_file", "the model")
    check_nodes(d, name)
    for key in ("backbone", "head"):
        if not isinstance(d.get(key), list):
            raise ValueError(
                f"{name} is no model YAML: `{key}:` must be a list of rows [from, repeats, module, [arguments]], got "
                f"{d.get(key)!r}. A data YAML is given as data=..."
            )
    if not d["backbone"]:
        raise ValueError(f"{name}: `backbone:` has no row.")
    if not _is_count(d.get("nc")):
        raise ValueError(f"{name}: `nc: {d.get('nc')}`, the number of classes, must be a whole number of at least 1.")
    for i, row in enumerate(d["backbone"] + d["head"]):
        _check_row(i, row)
    check_numbers(d, name)


def _check_row(index: int, row: Any) -> None:
    """Check what all rows have."""
    where = f"layer {index}, row {row}"
    if not isinstance(row, (list, tuple)) or len(row) != 4 or not isinstance(row[3], list):
        raise ValueError(f"{where}: a row is [from, repeats, module, [arguments]].")
    sources = row[0] if isinstance(row[0], list) else [row[0]]
    if not sources or not all(_is_source(source, index) for source in sources):
        raise ValueError(
            f"{where}: from must be -1, which is the layer before, or the number of an earlier layer, or a list of "
            f"those, got {row[0]!r}."
        )
    if not _is_count(row[1]) or row[1] > MAX_REPEATS:
        raise ValueError(f"{where}: repeats must be a whole number from 1 to {MAX_REPEATS}, got {row[1]!r}.")
    if not isinstance(row[2], str):
        raise ValueError(f"{where}: module must be the name of one, such as Conv, got {row[2]!r}.")


def _is_source(value: Any, index: int) -> bool:
    """Return whether layer `index` can read from a layer: by its number, or counted back from this one."""
    return isinstance(value, int) and not isinstance(value, bool) and (value == -1 or -index <= value < index)


def read_row(index: int, row: list[Any], settings: ModSettings) -> RoutedRow:
    """Read a routed row, whose shape is checked: options of the row win over those of `mod:`.

    Raises:
        ValueError: If the row was removed or has too many arguments, or an option or a value is not valid.
    """
    where = f"layer {index}, row {row}"
    name, args = row[2], list(row[3])
    if name in REMOVED:
        raise ValueError(f"{where}: {advice(name)}.")
    kind = KINDS[name]
    own = args.pop() if args and isinstance(args[-1], dict) else {}
    own = {**kind.read_args(args, where), **own}
    if not args or not _is_count(args[0]):
        raise ValueError(f"{where}: channels, its first argument, must be a whole number of at least 1.")
    options = {"capacity": settings.capacity, "router": settings.router}
    return RoutedRow(kind, args, options | check_options(own, where, kind.own_options), where)


def _is_count(value: Any) -> bool:
    """Return whether a value of a YAML is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def routed_parse_model(parse_model: ParseModel) -> ParseModel:
    """Wrap Ultralytics' `parse_model` so that it knows the routed rows; YAMLs without any pass through untouched."""

    def parse(d: dict[str, Any], ch: int, verbose: bool = True) -> tuple[nn.Sequential, list[int]]:
        with offline(builds_are_offline()):
            return parse_routed(d, ch, verbose) if _has_routed(d) or has_windows(d) else parse_model(d, ch, verbose)

    def parse_routed(d: dict[str, Any], ch: int, verbose: bool) -> tuple[nn.Sequential, list[int]]:
        check_model_yaml(d)
        rows = d["backbone"] + d["head"]
        settings = ModSettings.from_yaml(d.get("mod"))
        if settings.windows:
            _refuse_routed_rows(rows)
        routed = {i: read_row(i, row, settings) for i, row in enumerate(rows) if row[2] in OUR_NAMES}
        dense = deepcopy(rows)
        for i, row in routed.items():
            dense[i][2:] = row.kind.stand_in(row.args)
        model, save = _parse_dense(parse_model, d, dense, rows, ch)
        for i, row in routed.items():
            with _naming(row.where):
                model[i] = take_place(model[i], row.kind.build(model[i], row))
        if settings.windows:
            add_windows(model, settings.windows, rows, ch)
        if verbose:
            _print_table(rows, model)
            if settings.windows:
                say_attention(model)
        return model, save

    return parse


def has_windows(d: dict[str, Any]) -> bool:
    """Return whether a YAML has routed windows, with whatever settings."""
    section = d.get("mod")
    return isinstance(section, dict) and section.get("windows") is not None


def _refuse_routed_rows(rows: list[Any]) -> None:
    """Refuse rows that route by themselves in a model that runs on windows.

    Raises:
        ValueError: If there is one.
    """
    for i, row in enumerate(rows):
        if row[2] in OUR_NAMES:
            raise ValueError(
                f"layer {i}, row {row} routes tokens of the whole image, which windows cut up; take out "
                "mod.windows, or replace the row by a dense one."
            )


def _has_routed(d: dict[str, Any]) -> bool:
    """Return whether a YAML names a layer of ours, in rows of whatever shape."""
    rows = [row for key in ("backbone", "head") for row in (d.get(key) or ()) if isinstance(row, (list, tuple))]
    return any(part in OUR_NAMES for row in rows for part in row if isinstance(part, str))


def _parse_dense(parse_model: ParseModel, d: dict[str, Any], dense: list[Any], rows: list[Any], ch: int) -> Any:
    """Parse dense rows by Ultralytics; if that fails, once more, row by row, to name the one that cannot be built.

    Raises:
        ValueError: If a row is not valid.
    """

    def parse(count: int) -> Any:
        return parse_model({**d, "backbone": deepcopy(dense[:count]), "head": []}, ch, False)

    try:
        return parse(len(dense))
    except Exception:
        for i, row in enumerate(rows):
            with _naming(f"layer {i}, row {row}"):
                parse(i + 1)
        raise


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Turn errors from inside Ultralytics and torch into a line that names the row.

    Raises:
        ValueError: If there is an error.
    """
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        if where in str(error) or not isinstance(error, ValueError):
            raise
        raise ValueError(f"{where}: {one_line(error)}") from error
    except Exception as error:
        raise ValueError(f"{where} cannot be built: {one_line(error)}") from error


def write_options(row: list[Any], options: dict[str, Any]) -> None:
    """Write options, such as capacity and router, into a routed row of a model YAML."""
    args = row[3]
    own = {**(args.pop() if args and isinstance(args[-1], dict) else {}), **options}
    if own := KINDS[row[2]].write_args(args, own):
        args.append(own)


def forget_pretrained(d: dict[str, Any]) -> None:
    """Take the weights that a backbone started from out of a model's YAML.

    Once a model is trained, it carries its own: building it again must not need the first ones.
    """
    for row in d.get("backbone", []):
        options = row[3][-1] if row[2] in KINDS and row[3] else None
        if isinstance(options, dict) and options.get("pretrained"):
            options["pretrained"] = False


def _print_table(rows: list[list[Any]], model: nn.Sequential) -> None:
    """Log the layers as Ultralytics does, with the arguments as they stand in the YAML."""
    LOGGER.info(f"\n{'':>3}{'from':>20}{'n':>3}{'params':>10}  {'module':<45}{'arguments':<30}")
    for row, layer in zip(rows, model, strict=True):
        LOGGER.info(f"{layer.i:>3}{layer.f!s:>20}{row[1]:>3}{layer.np:10.0f}  {layer.type:<45}{row[3]!s:<30}")
