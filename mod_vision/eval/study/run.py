"""Runs of a study: train one row with one seed by plain `yolo train`, score it, and keep config and figures."""

from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import yaml

from mod_vision.eval.evaluate import score
from mod_vision.eval.flops import executed_gflops
from mod_vision.eval.study.rows import ROWS, Row, read_model
from mod_vision.files import writable_dir, write_text
from mod_vision.yolo.capacity import set_capacity
from mod_vision.yolo.fit import fit_routing
from mod_vision.yolo.images import load_model
from mod_vision.yolo.validate import validate

FIXED = {"val": False, "plots": False, "pretrained": False, "exist_ok": True, "workers": 1, "amp": False}
ONE_AT_A_TIME = Lock()  # Ultralytics' validation is not made for several at a time in one process
PACKAGES = ("ultralytics", "torch", "torchvision")


@dataclass(frozen=True)
class Schedule:
    """What all rows of a study share; every field but the first three is an argument of `yolo train`."""

    model: str
    data: str
    name: str
    imgsz: int = 320
    epochs: int = 20
    batch: int = 16
    nbs: int = 16  # a step per batch: at Ultralytics' 64, small data sets see few steps
    close_mosaic: int = 4

    def train_args(self) -> dict[str, Any]:
        """Return the arguments of `yolo train`."""
        return {k: v for k, v in asdict(self).items() if k not in ("model", "data", "name")}


def study(schedule: Schedule, rows: list[str], seeds: list[int], jobs: int, device: str, out: str | Path) -> Path:
    """Train and score what is missing, seed by seed, and return the folder of results.

    Args:
        schedule: What all rows share.
        rows: Names in `ROWS`.
        seeds: Seeds of the trainings.
        jobs: Trainings at the same time; on the CPU each has one thread.
        device: As in Ultralytics.
        out: Folder of results; a run whose JSON is there is done, one that was cut short is resumed.

    Raises:
        ValueError: If a row is unknown, or a result was made under another schedule.
    """
    unknown = [name for name in rows if name not in ROWS]
    if unknown:
        raise ValueError(f"unknown row {', '.join(unknown)}; known are {', '.join(ROWS)}.")
    folder = writable_dir(Path(out) / schedule.name)
    base = read_model(schedule.model)
    runs = [Run(ROWS[name], seed, schedule, folder, device) for seed in seeds for name in rows]
    missing = [run for run in runs if not run.done()]
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are done", flush=True)
    for group in ([run for run in missing if not run.row.fitted_to], [run for run in missing if run.row.fitted_to]):
        with ThreadPoolExecutor(jobs) as pool:
            for run in pool.map(lambda run: run.train_and_score(base), group):
                print(run, flush=True)
    return folder


@dataclass(frozen=True)
class Run:
    """One row with one seed."""

    row: Row
    seed: int
    schedule: Schedule
    folder: Path
    device: str

    @property
    def result(self) -> Path:
        """JSON of the figures."""
        return self.folder / f"{self.row.name}-seed{self.seed}.json"

    @property
    def work(self) -> Path:
        """Ultralytics' run folder."""
        return Path("runs", "study", self.schedule.name, f"{self.row.name}-seed{self.seed}").resolve()

    def __str__(self) -> str:
        """Return the figures in a line."""
        scores = json.loads(self.result.read_text())["scores"]
        figures = [f"{s['gflops']:.2f} GFLOPs, box AP {100 * s['box']['AP']:.1f}" for s in scores]
        return f"{self.row.name} seed {self.seed}: {'; '.join(figures)}"

    def done(self) -> bool:
        """Return whether the figures are there.

        Raises:
            ValueError: If they were made under another schedule.
        """
        if not self.result.is_file():
            return False
        found = json.loads(self.result.read_text())["config"]["train"]
        if found != self.schedule.train_args():
            raise ValueError(
                f"{self.result} was made under another schedule, {found}; give the study another name, or remove it."
            )
        return True

    def train_and_score(self, base: dict[str, Any]) -> Run:
        """Train, going on with what is there, and score the last weights."""
        d = self.row.make(base, self.schedule.model, self.schedule.imgsz)
        weights = self._fit(base) if self.row.fitted_to else self._train(d)
        with ONE_AT_A_TIME:
            figures = {"config": self._config(d), "versions": _versions(), "scores": self._scores(weights)}
        write_text(self.result, json.dumps(figures, indent=1) + "\n")
        return self

    def _train(self, d: dict[str, Any]) -> Path:
        """Train in a process of its own, and return the last weights."""
        last = self.work / "weights" / "last.pt"
        if not last.is_file():
            self._yolo(self._train_words(d))
        elif load_model(last).ckpt["epoch"] >= 0:  # Ultralytics writes -1 when it has finished
            self._yolo([f"model={last}", "resume=True"])
        return last

    def _fit(self, base: dict[str, Any]) -> Path:
        """Fit the routing to the weights of another row with the same seed, and return the file."""
        other = replace(self, row=ROWS[str(self.row.fitted_to)])
        weights = other._train(other.row.make(base, self.schedule.model, self.schedule.imgsz))
        fitted = writable_dir(self.work) / "fitted.pt"
        with ONE_AT_A_TIME:
            torch.manual_seed(self.seed)
            fit_routing(weights, self.schedule.data, imgsz=self.schedule.imgsz).save(fitted)
        return fitted

    def _train_words(self, d: dict[str, Any]) -> list[str]:
        """Return the arguments of `yolo train` for a new training."""
        model = Path(d["model"]) if "model" in d else self.work.parent / "models" / self.row.name / self.schedule.model
        if "model" not in d:
            model.parent.mkdir(parents=True, exist_ok=True)
            write_text(model, yaml.safe_dump(d, sort_keys=False))
        own = {"seed": self.seed, "device": self.device, "project": self.work.parent, "name": self.work.name}
        words = {"model": model, "data": self.schedule.data, **self.schedule.train_args(), **FIXED, **own}
        return [f"{key}={value}" for key, value in words.items()]

    def _yolo(self, words: list[str]) -> None:
        """Run `yolo train`, with its output in a file beside the run folder.

        Raises:
            RuntimeError: If it fails; the message names the file.
        """
        self.work.parent.mkdir(parents=True, exist_ok=True)
        log = self.work.with_name(f"{self.work.name}.log")
        env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        with log.open("a") as file:
            code = subprocess.call(["yolo", "train", *words], stdout=file, stderr=subprocess.STDOUT, env=env)
        if code:
            raise RuntimeError(f"the training of {self.work.name} failed with exit code {code}; see {log}")

    def _config(self, d: dict[str, Any]) -> dict[str, Any]:
        """Return all that the figures depend on."""
        data = Path(self.schedule.data).name
        return {
            "seed": self.seed,
            "data": data,
            "train": self.schedule.train_args(),
            "fixed": FIXED,
            "model": _compact(d),
        }

    def _scores(self, weights: Path) -> list[dict[str, Any]]:
        """Score the weights at each capacity of the row."""
        scores = []
        for capacity in self.row.capacities:
            yolo = load_model(weights)
            if capacity is not None:
                set_capacity(yolo, capacity)
            found = validate(yolo, data=self.schedule.data, imgsz=self.schedule.imgsz, device=self.device, batch=8)
            box, mask = score(found, found.annotations, str(yolo.task))
            scores.append(
                {
                    "capacity": capacity,
                    "gflops": executed_gflops(yolo.model.eval().fuse(verbose=False), self.schedule.imgsz),
                    "box": box,
                    "mask": mask,
                    "routed_share": found.truth.shares(),
                    "routed_share_random": found.truth.random(),
                }
            )
        return scores


def _compact(d: dict[str, Any]) -> dict[str, Any]:
    """Return a model YAML with one string for each row."""
    return {key: [str(row) for row in value] if key in ("backbone", "head") else value for key, value in d.items()}


def _versions() -> dict[str, str]:
    """Return date and versions."""
    return {"date": date.today().isoformat(), **{name: version(name) for name in PACKAGES}}
