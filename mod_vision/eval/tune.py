"""`mod-vision tune`: which capacity, router and stages pay on a data set."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mod_vision.eval.evaluate import evaluate_model, save_evaluation
from mod_vision.eval.flops import executed_gflops
from mod_vision.eval.latency import Latency, as_deployed, paired_latency
from mod_vision.eval.pareto import dominators, pareto_front
from mod_vision.files import writable_dir, write_text
from mod_vision.yolo.convert import save
from mod_vision.yolo.evolution import RoutingTuner
from mod_vision.yolo.images import load_model, round_imgsz, torch_device
from mod_vision.yolo.ray_tune import check_ray, run_on_ray
from mod_vision.yolo.search import DENSE, Candidate, routed_variant, search_space, share_weights
from mod_vision.yolo.trial import find_data, read_train_args, train

ROUNDS = 11


class Cost(NamedTuple):
    """Cost of one image: executed GFLOPs, and latency in milliseconds."""

    gflops: float
    latency: Latency


@dataclass(frozen=True)
class Trial:
    """A trained and scored candidate; AP in [0, 1] on the split `val`, masks only for segmentation."""

    candidate: Candidate
    box_ap: float
    mask_ap: float | None
    cost: Cost
    weights: str

    @property
    def ap(self) -> float:
        """AP of what the model is for: masks, or else boxes."""
        return self.box_ap if self.mask_ap is None else self.mask_ap

    @property
    def point(self) -> tuple[float, float]:
        """Median latency in milliseconds, and AP."""
        return self.cost.latency.median, self.ap

    def as_dict(self) -> dict[str, Any]:
        """Return plain figures, for JSON and CSV."""
        return {
            **self.candidate._asdict(),
            "box_ap": self.box_ap,
            "mask_ap": self.mask_ap,
            "gflops": self.cost.gflops,
            "latency_ms": self.cost.latency.median,
            "latency_quartiles_ms": [self.cost.latency.low, self.cost.latency.high],
            "weights": self.weights,
        }


@dataclass(frozen=True)
class Settings:
    """What all trials of a sweep share, and a resumed one must not change.

    Attributes:
        model: Model as the user named it.
        data: Absolute path of the data YAML.
        imgsz: Image size in pixels.
        epochs: Epochs per trial.
        batch: Images per batch.
        train_args: More of Ultralytics' training arguments.
    """

    model: str
    data: str
    imgsz: int
    epochs: int
    batch: int
    train_args: dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A sweep over routed variants of a model; what is finished lies in its folder.

    Attributes:
        folder: Absolute path; each trial has a run folder of Ultralytics in it, with a `trial.json` once it is done.
        settings: What all trials share.
        task: `detect` or `segment`.
        classes: Number of classes.
        device: As in Ultralytics.
        threads: CPU threads of evaluation and timing.
        costs: Cost of all candidates, timed in turn.
    """

    folder: Path
    settings: Settings
    task: str
    classes: int
    device: str
    threads: int
    costs: dict[Candidate, Cost]

    @property
    def start(self) -> Path:
        """Checkpoint with the weights that every trial starts from."""
        return self.folder / "start.pt"

    def run(self, candidate: Candidate, device: str | None = None) -> float:
        """Train, score and record a candidate, and return its AP."""
        settings, run_folder = self.settings, self.folder / candidate.slug
        device = self.device if device is None else device
        print(f"\n{candidate}: training for {settings.epochs} epochs", flush=True)
        args = {"imgsz": settings.imgsz, "epochs": settings.epochs, "batch": settings.batch, "device": device}
        args |= {"data": settings.data, "plots": False}
        weights = train(self.start, candidate, self.classes, run_folder, {**settings.train_args, **args})
        torch.set_num_threads(self.threads)  # training sets its own
        found = evaluate_model(
            weights,
            settings.data,
            settings.imgsz,
            settings.batch,
            device,
            project=str(run_folder),
            name="val",
            exist_ok=True,
        )
        save_evaluation(found, run_folder / "evaluation.json")
        mask_ap = found.mask["AP"] if found.mask else None
        trial = Trial(candidate, found.box["AP"], mask_ap, self.costs[candidate], str(weights))
        write_text(run_folder / "trial.json", json.dumps(trial.as_dict()) + "\n")
        print(f"{candidate}: AP {100 * trial.ap:.2f}, {trial.cost.latency}", flush=True)
        return trial.ap

    def trials(self) -> list[Trial]:
        """Return the finished trials, fastest first, with the cost of this sweep's timing: that of all in turn."""
        found = [
            Trial(candidate, read["box_ap"], read["mask_ap"], self.costs[candidate], read["weights"])
            for candidate, read in finished(self.folder).items()
        ]
        return sorted(found, key=lambda trial: trial.point)

    def fitness(self) -> dict[Candidate, float]:
        """Return how fit the finished candidates are as parents: 1 on the Pareto front, less the more dominate them."""
        trials = self.trials()
        counts = dominators([trial.point for trial in trials])
        return {trial.candidate: 1 / (1 + count) for trial, count in zip(trials, counts, strict=True)}

    def front(self) -> list[Trial]:
        """Return the trials of the Pareto front of AP against latency, fastest first."""
        trials = self.trials()
        return [trials[i] for i in pareto_front([trial.point for trial in trials])]

    def metric(self) -> str:
        """Return the name of the AP that counts."""
        return "mask AP" if self.task == "segment" else "box AP"

    def conditions(self) -> str:
        """Return what the latency holds for."""
        return (
            f"{self.settings.imgsz} px, batch 1, float32, {self.device}, {self.threads} threads, "
            f"median of {ROUNDS} rounds in turn"
        )

    def table(self) -> str:
        """Return all trials as text, fastest first, those on the Pareto front marked."""
        trials, front = self.trials(), self.front()
        dense = self.costs[DENSE].latency.median
        lines = [
            f"  {'capacity':<10}{'router':<10}{'stages':<14}{self.metric():>8}{'GFLOPs':>9}   "
            f"{'median (quartiles)':<28}{'speed-up':>8}"
        ]
        for trial in trials:
            mark, (capacity, router, stages) = "*" if trial in front else " ", trial.candidate
            gflops, latency = trial.cost
            lines.append(
                f"{mark} {capacity:<10g}{router:<10}{stages:<14}{100 * trial.ap:>8.2f}{gflops:>9.2f}   "
                f"{latency!s:<28}{dense / latency.median:>8.2f}"
            )
        lines += [
            "* on the Pareto front: no other trial is as fast and as accurate, and better in one",
            f"AP in percent; latency at {self.conditions()}",
        ]
        return "\n".join(lines)

    def save(self) -> None:
        """Write `results.json` with all trials, and `pareto.csv` with the front."""
        front = self.front()
        figures = {
            "settings": asdict(self.settings),
            "latency": self.conditions(),
            "trials": [{**trial.as_dict(), "pareto": trial in front} for trial in self.trials()],
        }
        write_text(self.folder / "results.json", json.dumps(figures, indent=2) + "\n")
        lines = io.StringIO()
        columns = ["capacity", "router", "stages", "box_ap", "mask_ap", "gflops", "latency_ms", "weights"]
        writer = csv.DictWriter(lines, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(trial.as_dict() for trial in front)
        write_text(self.folder / "pareto.csv", lines.getvalue())


def tune(
    model: str,
    data: str,
    capacity: Sequence[float],
    router: Sequence[str],
    stages: Sequence[str],
    imgsz: int = 640,
    epochs: int = 20,
    iterations: int = 12,
    batch: int = 16,
    device: str = "cpu",
    threads: int = 2,
    use_ray: bool = False,
    cfg: str | None = None,
    out: str | Path = "runs/mod-vision-tune",
) -> Sweep:
    """Train and score routed variants of a model and its dense twin; a sweep that was stopped goes on.

    All start from the same weights. Ultralytics' evolution chooses the candidates, with the Pareto front as parents; on
    Ray Tune, where they run at the same time, they are drawn at random.

    Args:
        model: Routed model: checkpoint or YAML name.
        data: Data YAML; trials train on `train` and are scored on `val`.
        capacity: Shares of tokens below 1 to choose from.
        router: Names of routers to choose from.
        stages: What to route: `all`, or rows of the model YAML such as `6` or `6+8`.
        imgsz: Image size in pixels.
        epochs: Epochs per trial.
        iterations: Number of trials, the dense twin among them.
        batch: Images per batch.
        device: As in Ultralytics; with Ray, `cpu`, or anything else for one GPU per trial.
        threads: CPU threads of evaluation and timing.
        use_ray: Whether to run the trials on Ray Tune.
        cfg: YAML with more of Ultralytics' training arguments.
        out: Folder for everything it writes.

    Returns:
        The sweep.

    Raises:
        FileNotFoundError: If model, data or cfg is missing.
        ImportError: If Ray Tune is asked for and missing.
        ValueError: If an argument is not valid, or `out` holds a sweep with other settings.
        RuntimeError: If a trial fails; the finished ones are kept.
    """
    if iterations < 2:
        raise ValueError(f"iterations={iterations}: give at least 2, the dense twin and one routed candidate.")
    if use_ray:
        check_ray()
    yolo = load_model(model)
    if yolo.task not in ("detect", "segment"):
        raise ValueError(f"model {model} is for {yolo.task}; tune is for detection and segmentation.")
    space = search_space(yolo, capacity, router, stages)
    torch_device(device)
    path, classes = find_data(data)
    settings = Settings(str(model), path, round_imgsz(imgsz), epochs, batch, read_train_args(cfg))
    folder = writable_dir(out).resolve()
    _check_settings(folder, settings)

    candidates = list(dict.fromkeys([*space.candidates(), *finished(folder)]))
    print(f"{len(candidates)} candidates, timed in turn", flush=True)
    torch.set_num_threads(threads)
    costs = time_candidates(yolo, candidates, classes, settings.imgsz, device)
    write_text(folder / "settings.json", json.dumps(asdict(settings), indent=2) + "\n")
    if not (folder / "start.pt").is_file():
        save(yolo, folder / "start.pt", model)
    sweep = Sweep(folder, settings, str(yolo.task), classes, device, threads, costs)
    if use_ray:
        left = _draw(space.candidates(), list(finished(folder)), iterations)
        gpus = 0 if device == "cpu" else 1
        run = partial(sweep.run, device="" if gpus else "cpu")  # Ray decides which GPU a trial sees
        if left:
            run_on_ray(left, run, sweep.task, epochs, path, folder, gpus)
    else:
        args = {"task": yolo.task, "project": str(folder.parent), "name": folder.name}
        RoutingTuner(yolo, space, sweep.run, sweep.fitness, args)(iterations)
    return sweep


def finished(folder: Path) -> dict[Candidate, dict[str, Any]]:
    """Return what the finished trials of a sweep's folder recorded."""
    records = [json.loads(file.read_text()) for file in sorted(folder.glob("*/trial.json"))]
    return {Candidate(r["capacity"], r["router"], r["stages"]): r for r in records}


def time_candidates(
    model: Any, candidates: Sequence[Candidate], classes: int, imgsz: int, device: str
) -> dict[Candidate, Cost]:
    """Measure untrained candidates in turn: what a routed model costs depends on its shapes, not on its weights.

    Candidates share the weights of one network per router, so that many fit into memory.

    Args:
        model: The routed `YOLO` object they are variants of.
        candidates: What to time.
        classes: Number of classes.
        imgsz: Image size in pixels.
        device: As in Ultralytics.
    """
    target = torch_device(device)
    fused: dict[str, Any] = {}
    for candidate in candidates:
        if candidate.router not in fused:
            fused[candidate.router] = as_deployed(routed_variant(model, candidate, classes).model, target)
    nets = {candidate: share_weights(fused[candidate.router], candidate) for candidate in candidates}
    image = torch.rand(1, 3, imgsz, imgsz, device=target).to(memory_format=torch.channels_last)
    calls = {str(candidate): partial(net, image) for candidate, net in nets.items()}
    with torch.inference_mode():
        times = paired_latency(calls, ROUNDS, device=str(target))
    return {candidate: Cost(executed_gflops(net, imgsz), times[str(candidate)]) for candidate, net in nets.items()}


def _check_settings(folder: Path, settings: Settings) -> None:
    """Check that a folder holds no sweep with other settings.

    Raises:
        ValueError: If it does.
    """
    file = folder / "settings.json"
    held = json.loads(file.read_text()) if file.is_file() else {}
    wanted = json.loads(json.dumps(asdict(settings)))
    for key in held:
        if held[key] != wanted[key]:
            raise ValueError(
                f"{folder} holds a sweep with {key}={held[key]}, not {wanted[key]}; choose another out=, or delete it."
            )


def _draw(candidates: list[Candidate], done: list[Candidate], iterations: int) -> list[Candidate]:
    """Return what is left to try: the dense twin, and routed candidates drawn at random."""
    routed = [c for c in candidates if c != DENSE]
    drawn = [DENSE, *random.Random(0).sample(routed, len(routed))]
    return [c for c in drawn if c not in done][: max(0, iterations - len(done))]
