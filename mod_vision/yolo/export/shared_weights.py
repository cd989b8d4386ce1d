"""Several ONNX graphs whose weights lie in one file, each tensor once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WEIGHTS = "weights.bin"
LEAST = 1024  # bytes; smaller tensors stay in their graph
ALIGNED = 64  # bytes


def save_sharing(models: Mapping[str, Any], folder: Path) -> None:
    """Write ONNX models by their file names into a folder, and the tensors of all of them into `WEIGHTS` beside."""
    from onnx import numpy_helper
    from onnx.external_data_helper import set_external_data

    places: dict[bytes, int] = {}
    with (folder / WEIGHTS).open("wb") as weights:
        for name, model in models.items():
            for tensor in model.graph.initializer:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))  # as bytes
                data = tensor.raw_data
                if len(data) < LEAST:
                    continue
                key = hashlib.sha256(data).digest()
                if key not in places:
                    weights.write(bytes(-weights.tell() % ALIGNED))
                    places[key] = weights.tell()
                    weights.write(data)
                set_external_data(tensor, WEIGHTS, places[key], len(data))
                tensor.ClearField("raw_data")
            (folder / name).write_bytes(model.SerializeToString())
