"""Routers that stay in float when Ultralytics' exporter quantises the rest for ONNX Runtime or OpenVINO."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

ROUTER = "router"  # in the names of its nodes


def with_float_router(export: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a quantising step of Ultralytics' exporter so that routers stay in float.

    A router compares scores. Rounded to 256 steps, many of them tie, and the order among the best is lost.
    """

    @functools.wraps(export)
    def quantise(*args: Any, **kwargs: Any) -> Any:
        with _onnxruntime_leaves_routers(), _nncf_leaves_routers():
            return export(*args, **kwargs)

    return quantise


@contextmanager
def _onnxruntime_leaves_routers() -> Iterator[None]:
    """Let ONNX Runtime's static quantisation skip the nodes of routers."""
    try:
        import onnx
        from onnxruntime import quantization
    except ImportError:  # not the format that is exported
        yield
        return
    original = quantization.quantize_static

    def quantize_static(model: Any, *args: Any, nodes_to_exclude: Sequence[str] = (), **kwargs: Any) -> Any:
        routers = [node.name for node in onnx.load(model).graph.node if f"/{ROUTER}/" in node.name]
        return original(model, *args, nodes_to_exclude=[*nodes_to_exclude, *routers], **kwargs)

    quantization.quantize_static = quantize_static
    try:
        yield
    finally:
        quantization.quantize_static = original


@contextmanager
def _nncf_leaves_routers() -> Iterator[None]:
    """Let NNCF's quantisation for OpenVINO skip the nodes of routers."""
    try:
        import nncf
    except ImportError:  # not the format that is exported
        yield
        return
    original = nncf.quantize

    def quantize(model: Any, *args: Any, ignored_scope: Any = None, **kwargs: Any) -> Any:
        names = [op.get_friendly_name() for op in model.get_ops() if f".{ROUTER}" in op.get_friendly_name()]
        scope = replace(ignored_scope or nncf.IgnoredScope())
        scope.names = [*scope.names, *names]
        return original(model, *args, ignored_scope=scope, **kwargs)

    nncf.quantize = quantize
    try:
        yield
    finally:
        nncf.quantize = original
