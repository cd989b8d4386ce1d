"""How models are run, the same for all that one command compares: size, device, threads. Imports nothing slow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunSettings:
    """How models are run.

    Attributes:
        imgsz: Longer side of the input in pixels, rounded up to a multiple of the stride. On the command line, 0 is the
            size that the model was trained at.
        device: As in Ultralytics; `''` is the first GPU, and the CPU where there is none.
        threads: CPU threads; 0 leaves torch's setting. Importing Ultralytics sets one.
    """

    imgsz: int = 640
    device: str = ""
    threads: int = 0


@dataclass(frozen=True)
class ExportSettings(RunSettings):
    """How a model is exported.

    Attributes:
        imgsz: Side of the images in pixels, or their height and width.
    """

    imgsz: Any = 0


@dataclass(frozen=True)
class ScoreSettings(RunSettings):
    """How a model is scored on a labelled data set.

    Attributes:
        batch: Images at a time.
        split: Split of the data set.
        annotations: COCO JSON, wins over the one that the data YAML names (`annotations: {val: file.json}`). Without
            either, ground truth is built from the YOLO labels.
        engine: What matches detections to objects: `pycocotools`, or `faster` for faster-coco-eval.
    """

    batch: int = 8
    split: str = "val"
    annotations: str | None = None
    engine: str = "pycocotools"


@dataclass(frozen=True)
class BenchSettings(RunSettings):
    """How a benchmark is run.

    Attributes:
        batch: Images at a time.
        repeats: Timed rounds; in each, all models run in turn.
        backend: eager, compile (torch.compile without graph breaks) or cudagraph, all fused and in channels-last
            memory; or onnx, openvino, torchscript or tensorrt, exported by Ultralytics.
        dtype: Precision of eager, compile and cudagraph: float32, bfloat16 or float16, on a GPU that of the weights, on
            the CPU by autocast; of tensorrt float32 or float16.
    """

    batch: int = 1
    repeats: int = 15
    backend: str = "eager"
    dtype: str = "float32"
