"""The ways a model can run, each as a call that can be timed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mod_vision.eval.cost.latency import as_deployed
from mod_vision.yolo.export.exporter import export_yolo, tensorrt_runner
from mod_vision.yolo.export.graphs import onnx_session, openvino_model

Call = Callable[[], object]
RUNTIMES = {"onnx": ("onnxruntime",), "openvino": ("openvino",), "tensorrt": ("tensorrt",)}
EAGER = ("eager", "compile", "cudagraph")
EXPORTED = ("onnx", "openvino", "torchscript", "tensorrt")
BACKENDS = (*EAGER, *EXPORTED)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_backend(backend: str, device: str, dtype: str) -> None:
    """Check that a backend can run on a device in a precision.

    Raises:
        ValueError: If not; the message says what can.
    """
    cuda = device.startswith("cuda")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    if backend in ("cudagraph", "tensorrt") and not cuda:
        raise ValueError(f"backend={backend} needs an NVIDIA GPU, device={device} is none; use device=0.")
    if backend in ("onnx", "openvino") and cuda:
        raise ValueError(f"backend={backend} is measured on the CPU only; use device=cpu.")
    if dtype != "float32" and backend not in EAGER and (backend, dtype) != ("tensorrt", "float16"):
        raise ValueError(
            f"dtype={dtype} is for {', '.join(EAGER)}, and float16 for tensorrt; an export has the precision it was "
            "exported with."
        )


def prepare(
    backend: str, yolo: Any, part: Callable[[Any], nn.Module], image: torch.Tensor, dtype: str, folder: Path
) -> Call:
    """Return a call that runs a model on a batch.

    Args:
        backend: One of `BACKENDS`.
        yolo: `YOLO` object; it is fused.
        part: Gives the part of its torch model to run, by eager backends.
        image: (B, 3, H, W) on the device.
        dtype: Precision: on a GPU that of weights and images, on the CPU by autocast.
        folder: Where exports are written.
    """
    if backend in EXPORTED:
        return _exported(backend, yolo, image, folder, dtype)
    net = part(as_deployed(yolo.model, image.device))
    image = image.to(memory_format=torch.channels_last)
    call = in_precision(net, image, DTYPES[dtype])
    if backend == "compile":
        call()  # Ultralytics' head makes its anchors, which dynamo cannot trace
        call = in_precision(torch.compile(net, fullgraph=True), image, DTYPES[dtype])
    return captured(call) if backend == "cudagraph" else call


def in_precision(net: Any, image: torch.Tensor, dtype: torch.dtype) -> Call:
    """Return a forward in a precision: on a GPU as `quantize=16` of `yolo` has it, else by autocast."""
    if image.is_cuda:
        net, image = net.to(dtype), image.to(dtype)
        return lambda: net(image)

    def call() -> object:
        with torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
            return net(image)

    return call


def captured(call: Call) -> Call:
    """Return the replay of a CUDA graph of a forward; capturing fails if it synchronises with the host."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.inference_mode():
        for _ in range(3):  # lets libraries choose and allocate
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        call()
    return graph.replay


def _exported(backend: str, yolo: Any, image: torch.Tensor, folder: Path, dtype: str) -> Call:
    """Return a run of an export, with as many threads as torch has."""
    batch, _, height, width = image.shape
    yolo.model.pt_path = str(folder / "model.pt")  # the exporter writes beside it
    name = "engine" if backend == "tensorrt" else backend
    half = {"quantize": 16} if dtype == "float16" else {}
    path = export_yolo(yolo, format=name, imgsz=[height, width], batch=batch, device=image.device, **half)
    if backend == "onnx":
        session = onnx_session(path)
        feed = {session.get_inputs()[0].name: image.numpy()}
        return lambda: session.run(None, feed)
    if backend == "openvino":
        model = openvino_model(path, precision="f32")
        array = image.numpy()
        return lambda: model(array)
    if backend == "torchscript":
        script: nn.Module = torch.jit.freeze(torch.jit.load(path, map_location=image.device).eval())
        return lambda: script(image)
    return tensorrt_runner(path, image)
