"""Routers and rankings stay in float when Ultralytics' exporter quantises the rest for ONNX Runtime or OpenVINO."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mod_vision.yolo.export.ranking import ROUTER, onnx_ranking, openvino_ranking

Quantise = Callable[..., Any]


def with_float_router_in_onnx(export: Quantise) -> Quantise:
    """Wrap Ultralytics' quantisation of an ONNX file so that routers stay in float.

    A router's scores are compared. Rounded to 256 steps, many of them tie, and the order among the best is lost.
    """

    @functools.wraps(export)
    def quantise(*args: Any, **kwargs: Any) -> Any:
        from onnxruntime import quantization

        with wrapped(quantization, "quantize_static", _leave_onnx_routers):
            return export(*args, **kwargs)

    return quantise


def with_float_router_in_openvino(export: Quantise) -> Quantise:
    """Wrap Ultralytics' conversion to OpenVINO so that routers stay in float where it quantises, as in ONNX."""

    @functools.wraps(export)
    def convert(*args: Any, quantize: Any = None, **kwargs: Any) -> Any:
        if quantize != 8:  # the import of nncf takes seconds
            return export(*args, quantize=quantize, **kwargs)
        import nncf

        with wrapped(nncf, "quantize", _leave_openvino_routers):
            return export(*args, quantize=quantize, **kwargs)

    return convert


@contextmanager
def wrapped(module: Any, name: str, wrap: Callable[[Quantise], Quantise]) -> Iterator[None]:
    """Wrap a function of a module for a while."""
    original = getattr(module, name)
    setattr(module, name, wrap(original))
    try:
        yield
    finally:
        setattr(module, name, original)


def _leave_onnx_routers(quantise: Quantise) -> Quantise:
    """Let ONNX Runtime's static quantisation skip the nodes of routers."""

    def quantize_static(model: Any, *args: Any, nodes_to_exclude: Sequence[str] = (), **kwargs: Any) -> Any:
        import onnx

        graph = onnx.load(model).graph
        routers = {node.name for node in graph.node if f"/{ROUTER}/" in node.name}
        rankings = [onnx_ranking(graph, node) for node in graph.node if node.op_type in ("TopK", "ArgMax")]
        ranks = {node.name for ranking in rankings if ranking.routers for node in ranking.nodes}
        return quantise(model, *args, nodes_to_exclude=[*nodes_to_exclude, *sorted(routers | ranks)], **kwargs)

    return quantize_static


def _leave_openvino_routers(quantise: Quantise) -> Quantise:
    """Let NNCF's quantisation for OpenVINO skip the nodes of routers."""

    def quantize(model: Any, *args: Any, ignored_scope: Any = None, **kwargs: Any) -> Any:
        import nncf

        ops = model.get_ops()
        rankings = [openvino_ranking(op) for op in ops if op.get_type_name() == "TopK"]
        floating = [op for op in ops if f".{ROUTER}" in op.get_friendly_name()]
        sources = [value.get_node() for op in floating for value in op.input_values()]
        floating += [op for op in sources if not op.get_friendly_name().startswith("__module.")]  # fused with its BN
        floating += [op for ranking in rankings if ranking.routers for op in ranking.nodes]
        names = {op.get_friendly_name() for op in floating if op.get_type_name() not in ("Constant", "Parameter")}
        scope = replace(ignored_scope or nncf.IgnoredScope())
        scope.names = [*scope.names, *sorted(names)]
        return quantise(model, *args, ignored_scope=scope, **kwargs)

    return quantize
