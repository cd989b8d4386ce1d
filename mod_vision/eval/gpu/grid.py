"""Windows against the dense model at many sizes, batches and backends, the most telling first, as time allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from mod_vision.errors import one_line
from mod_vision.eval.cost.benchmark import Row, efficiency, load_models, measure
from mod_vision.eval.cost.memory import free_memory
from mod_vision.run_settings import BenchSettings

CAPACITY = 0.25
LATER = {"eager": 0, "cudagraph": 0, "compile": 5, "tensorrt": 6}  # by how many places: these take minutes to build
EXPECTED = {"eager": 5.0, "cudagraph": 5.0, "compile": 60.0, "tensorrt": 90.0}  # seconds, before one is measured
LARGER = 1.5  # the next may be a larger model


class Combo(NamedTuple):
    """What is measured: `yolo26{scale}-mod` on square images."""

    scale: str
    imgsz: int
    batch: int
    backend: str

    def __str__(self) -> str:
        return f"yolo26{self.scale}, {self.imgsz} px, batch {self.batch}, {self.backend}"


@dataclass(frozen=True)
class Grid:
    """What to measure.

    Attributes:
        scales: Scales of YOLO26.
        places: Image size in px and batch, the most telling first.
        backends: As in `BenchSettings`.
        dtype: As in `BenchSettings`.
        repeats: Timed rounds.
    """

    scales: str
    places: Sequence[tuple[int, int]]
    backends: Sequence[str]
    dtype: str
    repeats: int

    def combos(self) -> list[Combo]:
        """Return all of them, in the order in which they are measured."""
        ranked = [
            (rank + LATER[backend], rank, Combo(scale, imgsz, batch, backend))
            for rank, (imgsz, batch) in enumerate(self.places)
            for backend in self.backends
            for scale in self.scales
        ]
        return [combo for *_, combo in sorted(ranked, key=lambda found: found[:2])]


class Result(NamedTuple):
    """What a combination gave.

    Attributes:
        combo: The combination.
        dense: The dense baseline, None if it failed.
        windows: The model on windows, None if it failed.
        error: Why it failed.
    """

    combo: Combo
    dense: Row | None = None
    windows: Row | None = None
    error: str | None = None

    @property
    def speed_up(self) -> float:
        """Time of the dense baseline over that on windows."""
        assert self.dense is not None
        assert self.windows is not None
        return self.dense.latency.median / self.windows.latency.median

    @property
    def efficiency(self) -> float:
        """Share of the FLOP ratio that the speed-up reaches."""
        assert self.dense is not None
        assert self.windows is not None
        return efficiency(self.windows, self.dense)

    def __str__(self) -> str:
        if not (self.dense and self.windows):
            return f"{self.combo}: {self.error}"
        return (
            f"{self.combo}: dense {self.dense.latency}, windows {self.windows.latency}, {self.speed_up:.2f}x, "
            f"efficiency {self.efficiency:.2f}"
        )


def run_grid(
    grid: Grid, device: str, until: float, left_out: list[Combo], clock: Callable[[], float] = time.perf_counter
) -> Iterator[Result]:
    """Measure one combination after the other, and yield what each gives; models are built once for each scale.

    Args:
        grid: What to measure.
        device: Name of the device in torch.
        until: When to be done, on the clock. None starts that would not be, if it takes half as long again as the
            longest of its backend.
        left_out: Takes those for which there was no time.
        clock: Gives seconds.
    """
    models: dict[str, dict[str, Any]] = {}
    longest: dict[str, float] = {}
    for combo in grid.combos():
        began = clock()
        if began + LARGER * longest.get(combo.backend, EXPECTED[combo.backend] / LARGER) > until:
            left_out.append(combo)
            continue
        yield _measured(combo, grid, device, models)
        longest[combo.backend] = max(longest.get(combo.backend, 0.0), clock() - began)


def _measured(combo: Combo, grid: Grid, device: str, models: dict[str, dict[str, Any]]) -> Result:
    """Measure a combination; `models` keeps those of each scale."""
    bench = BenchSettings(
        combo.imgsz, device, torch.get_num_threads(), combo.batch, grid.repeats, combo.backend, grid.dtype
    )
    try:
        if combo.scale not in models:
            models[combo.scale] = load_models(f"yolo26{combo.scale}-mod.yaml", [CAPACITY], [], bench)
        dense, windows = measure(models[combo.scale], bench)
        return Result(combo, dense, windows)
    except Exception as error:
        said = "out of memory" if _out_of_memory(error) else f"failed, {type(error).__name__}: {one_line(error)}"
        return Result(combo, error=said)
    finally:
        free_memory(device)


def _out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error comes of a lack of memory; a CUDA graph that is not finished raises its own."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False
