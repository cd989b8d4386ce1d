"""What an exported graph computes between a router and the selection of tokens: the rank of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

ROUTER = "router"  # in the names of its nodes
SHAPES = ("Shape", "ShapeOf")  # types of nodes that read no values


class Ranking(NamedTuple):
    """The way from the router of a layer to its selection of tokens, or of one of its windows.

    Attributes:
        nodes: Nodes on the way, and those that find the padding.
        routers: Last nodes of the router, none if the selection is not of a routed layer.
    """

    nodes: list[Any]
    routers: list[Any]


def onnx_ranking(graph: Any, selection: Any) -> Ranking:
    """Return the way to a TopK node, or an ArgMax node, of an ONNX graph."""
    made = {output: node for node in graph.node for output in node.output}

    def sources(node: Any) -> Iterator[Any]:
        return (made[name] for name in node.input if name in made and node.op_type not in SHAPES)

    router = f"{selection.name.rpartition('/')[0]}/{ROUTER}/"
    return _walk_back(selection, sources, lambda node: node.name, lambda name: name.startswith(router))


def openvino_ranking(selection: Any) -> Ranking:
    """Return the way to a TopK operation of an OpenVINO model."""

    def sources(op: Any) -> Iterator[Any]:
        return (value.get_node() for value in op.input_values() if op.get_type_name() not in SHAPES)

    name = selection.get_friendly_name()
    router = f"{name.partition('/')[0]}.{ROUTER}/"
    windows = is_window(name)  # which are placed in front of the network, not in the layer that has the router
    return _walk_back(
        selection,
        sources,
        lambda op: op.get_friendly_name(),
        lambda name: f".{ROUTER}/" in name if windows else name.startswith(router),
    )


def is_window(name: str) -> bool:
    """Return whether an operation of an OpenVINO model selects a window."""
    return "aten::argmax/TopK" in name


def _walk_back(
    selection: Any,
    sources: Callable[[Any], Iterable[Any]],
    name_of: Callable[[Any], str],
    is_router: Callable[[str], bool],
) -> Ranking:
    """Walk from a selection back to the nodes of a router, by their names, and to the images."""
    ranking, seen, to_do = Ranking([], []), set(), list(sources(selection))
    while to_do:
        node = to_do.pop()
        if (name := name_of(node)) in seen:
            continue
        seen.add(name)
        if is_router(name):
            ranking.routers.append(node)
        else:
            ranking.nodes.append(node)
            to_do += sources(node)
    return ranking
