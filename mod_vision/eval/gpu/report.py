"""What a run on a GPU found, as figures and as a page, and which of its bars hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mod_vision.eval.gpu.checks import Check
from mod_vision.eval.gpu.grid import CAPACITY, Combo, Result
from mod_vision.eval.gpu.training import Epoch

LARGE = 1280  # px from which windows shall pay at batch 1
EFFICIENT = 0.8
VERDICT = {True: "holds", False: "**does not hold**", None: "not tried"}


class Bar(NamedTuple):
    """What shall hold, for one backend.

    Attributes:
        name: What.
        backend: Of which backend.
        holds: Whether it does, None if nothing was measured.
        said: How many of the measured combinations meet it, and those that do not.
    """

    name: str
    backend: str
    holds: bool | None
    said: str


@dataclass
class Report:
    """What was found so far.

    Attributes:
        machine: Device, versions, date.
        dtype: Precision of the times.
        checks: Checks.
        epochs: Epochs of a training, or why one failed.
        results: Times.
        left_out: Combinations for which there was no time.
        backends: Backends that were to be measured.
    """

    machine: dict[str, Any]
    dtype: str
    backends: Sequence[str]
    checks: list[Check] = field(default_factory=list)
    epochs: list[Epoch | str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    left_out: list[Combo] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether a check does not hold, or something could not run for another reason than memory."""
        return (
            any(check.holds is False for check in self.checks)
            or any(isinstance(epoch, str) or not epoch.finite for epoch in self.epochs)
            or any(result.error not in (None, "out of memory") for result in self.results)
        )

    def bars(self) -> list[Bar]:
        """Return the bars."""
        never = f"never slower than dense at batch 1 from {LARGE} px on"
        most = f"efficiency at batch 8 at least {EFFICIENT:g}, s and larger"
        found = []
        for backend in self.backends:
            own = [result for result in self.results if result.combo.backend == backend]
            large = [r for r in own if r.combo.batch == 1 and r.combo.imgsz >= LARGE]
            found.append(_bar(never, backend, large, lambda r: r.speed_up, 1.0))
            eight = [r for r in own if r.combo.batch == 8 and r.combo.scale != "n"]
            found.append(_bar(most, backend, eight, lambda r: r.efficiency, EFFICIENT))
        return found

    def figures(self) -> dict[str, Any]:
        """Return all as plain values for JSON."""
        return {
            "conditions": {**self.machine, "dtype": self.dtype, "capacity": CAPACITY},
            "checks": [check._asdict() for check in self.checks],
            "training": [{"error": epoch} if isinstance(epoch, str) else epoch._asdict() for epoch in self.epochs],
            "rows": [_figures(result) for result in self.results],
            "left_out": [combo._asdict() for combo in self.left_out],
            "bars": [bar._asdict() for bar in self.bars()],
        }

    def page(self) -> str:
        """Return all as Markdown."""
        lines = ["# Windows on a GPU", ", ".join(f"{k} {v}" for k, v in self.machine.items() if v is not None), ""]
        lines += ["## Bars", "| bar | backend | | |", "| --- | --- | --- | --- |"]
        lines += [f"| {bar.name} | {bar.backend} | {VERDICT[bar.holds]} | {bar.said} |" for bar in self.bars()]
        lines += ["", "## Checks", "| check | | |", "| --- | --- | --- |"]
        lines += [f"| {check.name} | {VERDICT[check.holds]} | {check.said} |" for check in self.checks]
        lines += ["", "## Training", "| epoch | steps | median step | peak MB | losses |", f"{'| --- ' * 5}|"]
        lines += [_epoch_line(epoch) for epoch in self.epochs]
        lines += ["", f"## Times, {self.dtype}, capacity {CAPACITY:g}", *_table(self.results)]
        lines += ["", f"## Left out for lack of time: {len(self.left_out)}", *(f"- {c}" for c in self.left_out)]
        return "\n".join(lines) + "\n"


def _bar(name: str, backend: str, results: Sequence[Result], figure: Callable[[Result], float], least: float) -> Bar:
    """Return whether all results have at least a figure."""
    measured = [result for result in results if result.error is None]
    if not measured:
        return Bar(name, backend, None, "")
    below = [f"{r.combo}: {figure(r):.2f}" for r in measured if figure(r) < least]
    said = f"{len(measured) - len(below)} of {len(measured)}"
    return Bar(name, backend, not below, f"{said}; not {'; '.join(below)}" if below else said)


def _figures(result: Result) -> dict[str, Any]:
    """Return a result as plain values."""
    found: dict[str, Any] = {**result.combo._asdict(), "error": result.error}
    if result.dense and result.windows:
        rows = {"dense": result.dense, "windows": result.windows}
        found |= {name: {**row._asdict(), "latency": row.latency._asdict()} for name, row in rows.items()}
        found |= {"speed_up": result.speed_up, "efficiency": result.efficiency}
    return found


def _epoch_line(epoch: Epoch | str) -> str:
    """Return a line of the table of trainings."""
    if isinstance(epoch, str):
        return f"| {epoch} | | | | |"
    peak = "" if epoch.peak_mb is None else f"{epoch.peak_mb:.0f}"
    finite = "finite" if epoch.finite else "**not finite**"
    return f"| {epoch.name} | {epoch.steps} | {epoch.step_ms:.0f} ms | {peak} | {finite} |"


def _table(results: Sequence[Result]) -> list[str]:
    """Return the table of times, in the order of size, batch and backend."""
    lines = [
        "| model | px | batch | backend | dense | windows | speed-up | FLOP ratio | efficiency | peak MB |",
        f"{'| --- ' * 10}|",
    ]
    for result in sorted(results, key=lambda r: (r.combo.imgsz, r.combo.batch, r.combo.backend)):
        scale, imgsz, batch, backend = result.combo
        start = f"| yolo26{scale} | {imgsz} | {batch} | {backend} |"
        if not (result.dense and result.windows):
            lines.append(f"{start} {result.error} | | | | | |")
            continue
        rows = result.dense, result.windows
        times, ratio = " | ".join(str(row.latency) for row in rows), rows[0].gflops / rows[1].gflops
        peaks = ", ".join(f"{row.peak_mb:.0f}" for row in rows if row.peak_mb is not None)
        lines.append(f"{start} {times} | {result.speed_up:.2f} | {ratio:.2f} | {result.efficiency:.2f} | {peaks} |")
    return lines
