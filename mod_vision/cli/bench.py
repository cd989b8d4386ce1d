"""`mod-vision bench`: whole models, backbones, layers, training steps, or a profile."""

from __future__ import annotations

from typing import Any

from mod_vision.cli.arguments import THREADS, shares_of
from mod_vision.cli.keys import as_list
from mod_vision.files import fresh_path, writable_dir
from mod_vision.run_settings import BenchSettings

BASELINE = "yolo26n.yaml"


def bench(
    model: str = "yolo26n-mod.yaml",
    capacity: Any = (0.5, 0.25),
    baselines: Any = (BASELINE,),
    by: str = "model",
    run: BenchSettings = BenchSettings(threads=THREADS),  # noqa: B008  # frozen
    out: str | None = None,
) -> None:
    """Speed against the dense baseline and others, in turn: by=model, backbone, layer, step (of a training), profile.

    Example: mod-vision bench model=best.pt capacity=0.5,0.25 backend=onnx threads=4
    """
    from mod_vision.eval.cost.benchmark import save_figures
    from mod_vision.eval.cost.conditions import conditions
    from mod_vision.routing import check_capacity
    from mod_vision.viz.speed import draw_speed

    measures = {"model": _whole, "backbone": _whole, "layer": _layers, "step": _steps, "profile": _profiles}
    if by not in measures:
        raise ValueError(f"by must be model, backbone, layer, step or profile, got {by!r}.")
    if by in ("layer", "profile") and as_list(baselines) not in ([], [BASELINE]):
        raise ValueError(f"by={by} measures the layers of one model; leave out baselines=.")
    if measures[by] is not _whole and (run.backend, run.dtype) != ("eager", "float32"):
        raise ValueError(f"by={by} measures backend=eager in float32.")
    folder = writable_dir(fresh_path(out, "bench.json")) if out else None
    shares = [check_capacity(c) for c in shares_of(capacity)]
    held = conditions(run)
    text = ", ".join(f"{key} {value}" for key, value in held.items())
    print(text)
    rows, table, figures = measures[by](model, shares, as_list(baselines), run, by)
    print(table)
    if folder is None:
        return
    save_figures(figures, {**held, "model": model, "by": by}, folder / "bench.json")
    if measures[by] is _whole:
        draw_speed(rows, text, folder / "bench.png")
    print(f"figures in {folder}")


Measured = tuple[list[Any], str, list[dict[str, Any]]]  # rows, their table, and figures for JSON


def _whole(model: str, shares: list[float], baselines: list[str], run: BenchSettings, by: str) -> Measured:
    """Time whole models, or their backbones."""
    from mod_vision.eval.cost.benchmark import as_figures, benchmark, table

    rows = benchmark(model, shares, baselines, run, by)
    return rows, table(rows), as_figures(rows)


def _layers(model: str, shares: list[float], baselines: list[str], run: BenchSettings, by: str) -> Measured:
    """Time each routed layer."""
    from mod_vision.eval.cost.layer_benchmark import benchmark_layers, layer_table

    rows = benchmark_layers(model, shares, run)
    return rows, layer_table(rows), [{**row._asdict(), "efficiency": row.efficiency} for row in rows]


def _steps(model: str, shares: list[float], baselines: list[str], run: BenchSettings, by: str) -> Measured:
    """Time a training step."""
    from mod_vision.eval.cost.step_benchmark import benchmark_step, step_table

    rows = benchmark_step(model, shares, baselines, run)
    return rows, step_table(rows), [row._asdict() for row in rows]


def _profiles(model: str, shares: list[float], baselines: list[str], run: BenchSettings, by: str) -> Measured:
    """Profile the steps of each routed layer."""
    from mod_vision.eval.cost.layer_profile import profile_layers, profile_table

    rows = profile_layers(model, shares, run)
    return rows, profile_table(rows), [row._asdict() for row in rows]
