"""Runs of a study: train one row with one seed by plain `yolo train`, score it, and keep config and figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import yaml

from mod_vision.eval.accuracy.coco import Scorer
from mod_vision.eval.cost.flops import executed_gflops
from mod_vision.files import writable_dir, write_text
from mod_vision.yolo.model.capacity import load_at, set_capacity
from mod_vision.yolo.model.graph import save
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.settings import ModSettings
from mod_vision.yolo.model.variants import ALL, Candidate, routed_variant
from mod_vision.yolo.run.validate import validate
from mod_vision.yolo.train.fit import fit_routing
from studies.rows import ROWS, Row, read_model

FIXED = {"val": False, "plots": False, "pretrained": False, "exist_ok": True, "workers": 1, "amp": False}
TUNE = {
    "pretrained": True,  # with False, Ultralytics discards the weights of a checkpoint too
    "close_mosaic": 0,
    "mosaic": 0,
    "warmup_epochs": 0,
    "optimizer": "AdamW",
    "lr0": 0.0005,
}
FIT_CAPACITY = 0.5  # one fit serves all capacities
ONE_AT_A_TIME = Lock()  # Ultralytics' validation is not made for several at a time in one process
PACKAGES = ("ultralytics", "torch", "torchvision")


@dataclass(frozen=True)
class Schedule:
    """What all rows of a study share: a training, and a short one after it.

    Attributes:
        model: Name of the routed model's YAML.
        data: Data YAML.
        name: Name of the study.
        tuning: Epochs of the second training: without mosaic, by AdamW at a small learning rate.

    The others are arguments of `yolo train`.
    """

    model: str
    data: str
    name: str
    imgsz: int = 320
    epochs: int = 20
    batch: int = 16
    nbs: int = 16  # a step per batch: at Ultralytics' 64, small data sets see few steps
    close_mosaic: int = 4
    tuning: int = 5

    def train_args(self) -> dict[str, Any]:
        """Return the arguments of `yolo train` of the first training."""
        return {k: v for k, v in asdict(self).items() if k not in ("model", "data", "name", "tuning")}

    def tune_args(self) -> dict[str, Any]:
        """Return the arguments of `yolo train` of the second training."""
        return {**self.train_args(), "epochs": self.tuning, **TUNE}


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
    runs = [Run(ROWS[name], seed, schedule, folder, device) for seed in seeds for name in rows]
    missing = [run for run in runs if not run.done()]
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are done", flush=True)
    for run in missing:
        run.model_yaml()  # here, because it draws random numbers, which threads would do in any order
    for seed in seeds:
        group = [run for run in missing if run.seed == seed]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda run: run.train(), {run.first.row.name: run.first for run in group}.values()))
        with ThreadPoolExecutor(jobs) as pool:
            for run in pool.map(lambda run: run.tune_and_score(), group):
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
    def first(self) -> Run:
        """The run that does the first training."""
        return replace(self, row=ROWS[self.row.start]) if self.row.start else self

    @property
    def result(self) -> Path:
        """JSON of the figures."""
        return self.folder / f"{self.row.name}-seed{self.seed}.json"

    @property
    def work(self) -> Path:
        """Folder of everything else: a run folder of Ultralytics for each training, and the weights between."""
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
        if found != self._trainings():
            raise ValueError(
                f"{self.result} was made under another schedule, {found}; give the study another name, or remove it."
            )
        return True

    def model_yaml(self) -> dict[str, Any]:
        """Return the model YAML of the row; it is made once."""
        return _model_yaml(self.row, self.schedule)

    def last(self, name: str) -> Path:
        """Return the last weights of a training."""
        return self.work / name / "weights" / "last.pt"

    def train(self) -> None:
        """Do the first training."""
        d = self.model_yaml()
        model = Path(d["model"]) if "model" in d else self.work / self.schedule.model
        if "model" not in d:
            write_text(writable_dir(model.parent) / model.name, yaml.safe_dump(d, sort_keys=False))
        self._train("train", model, self.schedule.train_args())

    def tune_and_score(self) -> Run:
        """Take over the first training, train on as the row has it, and score the last weights."""
        with ONE_AT_A_TIME:
            weights = self._start()
        if self.row.tuned:
            self._train("tune", weights, self.schedule.tune_args())
            weights = self.last("tune")
        with ONE_AT_A_TIME:
            figures = {"config": self._config(), "versions": _versions(), "scores": self._scores(weights)}
        write_text(self.result, json.dumps(figures, indent=1) + "\n")
        return self

    def _trainings(self) -> dict[str, Any]:
        """Return the arguments of the trainings, in their order."""
        first = {"train": self.schedule.train_args()}
        return {**first, "tune": self.schedule.tune_args()} if self.row.tuned else first

    def _start(self) -> Path:
        """Give the weights of the first training the routing of the row, and return the file."""
        weights, d = self.first.last("train"), self.model_yaml()
        yolo = load_model(weights)
        if "mod" in d:
            section = {key: value for key, value in d["mod"].items() if key != "warmup"}  # the first training had it
            settings = ModSettings.from_yaml(section)
            if self.row.start and settings.capacity != 1:
                yolo = load_model(self._fit(weights, settings))
            set_capacity(yolo, settings.capacity)
            yolo.model.yaml["mod"] = section
        start = writable_dir(self.work) / "start.pt"
        save(yolo, start, weights)
        return start

    def _fit(self, weights: Path, settings: ModSettings) -> Path:
        """Fit the routing of a row to weights that were trained dense; rows that differ in capacity share the file."""
        fitted = weights.with_name(f"fitted-{settings.router}{'' if settings.loss.guide else '-no-guide'}.pt")
        if not fitted.is_file() or fitted.stat().st_mtime < weights.stat().st_mtime:
            torch.manual_seed(self.seed)
            yolo = load_model(weights)
            yolo = routed_variant(yolo, Candidate(FIT_CAPACITY, settings.router, ALL), yolo.model.yaml["nc"])
            yolo.model.yaml["mod"]["loss"] = {"guide": settings.loss.guide}
            fit_routing(yolo, self.schedule.data, FIT_CAPACITY, self.schedule.imgsz)
            save(yolo, fitted, weights)
        return fitted

    def _train(self, name: str, model: Path, args: dict[str, Any]) -> None:
        """Train in a process of its own, going on with what is there.

        Raises:
            ValueError: If what is there was trained in another way.
            RuntimeError: If the training fails; the message names its log.
        """
        if not self.last(name).is_file():
            own = {"seed": self.seed, "device": self.device, "project": self.work, "name": name}
            words = {"model": model, "data": self.schedule.data, **FIXED, **args, **own}
            self._yolo(name, [f"{key}={value}" for key, value in words.items()])
            return
        found = load_model(self.last(name)).ckpt
        other = [key for key, value in args.items() if found["train_args"][key] != value]
        if other:
            raise ValueError(f"{self.work / name} was trained with another {', '.join(other)}; remove the folder.")
        if 0 <= found["epoch"] < args["epochs"] - 1:  # Ultralytics writes -1 when it has finished
            self._yolo(name, [f"model={self.last(name)}", "resume=True"])

    def _yolo(self, name: str, words: list[str]) -> None:
        """Run `yolo train`, with its output in a file beside the run folder.

        Raises:
            RuntimeError: If it fails; the message names the file.
        """
        log = writable_dir(self.work) / f"{name}.log"
        command = [sys.executable, "-m", "mod_vision.yolo.train.cpu"] if self.device == "cpu" else ["yolo"]
        env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        with log.open("a") as file:
            code = subprocess.call([*command, "train", *words], stdout=file, stderr=subprocess.STDOUT, env=env)
        if code:
            raise RuntimeError(f"the training in {self.work / name} failed with exit code {code}; see {log}")

    def _config(self) -> dict[str, Any]:
        """Return all that the figures depend on."""
        data = Path(self.schedule.data).name
        return {
            "seed": self.seed,
            "data": data,
            "train": self._trainings(),
            "fixed": {**FIXED, "autocast": "bfloat16"} if self.device == "cpu" else FIXED,
            "model": _compact(self.model_yaml()),
        }

    def _scores(self, weights: Path) -> list[dict[str, Any]]:
        """Score the weights at each capacity of the row."""
        scores = []
        for capacity in self.row.capacities:
            yolo = load_at(weights, capacity)
            torch.manual_seed(self.seed)  # for random routing
            scorer, imgsz = Scorer(str(yolo.task)), self.schedule.imgsz
            found = validate(yolo, scorer.update, data=self.schedule.data, batch=8, imgsz=imgsz, device=self.device)
            stats = {kind: part.stats for kind, part in scorer.result().items()}
            scores.append(
                {
                    "capacity": capacity,
                    "gflops": executed_gflops(yolo.model.eval().fuse(verbose=False), imgsz),
                    "box": stats["box"],
                    "mask": stats.get("mask"),
                    **found.recall.result().figures(),
                }
            )
        return scores


@cache
def _model_yaml(row: Row, schedule: Schedule) -> dict[str, Any]:
    """Return the model YAML of a row; an isoFLOP baseline takes a search."""
    return row.make(read_model(schedule.model), schedule.model, schedule.imgsz)


def _compact(d: dict[str, Any]) -> dict[str, Any]:
    """Return a model YAML with one string for each row."""
    return {key: [str(row) for row in value] if key in ("backbone", "head") else value for key, value in d.items()}


def _versions() -> dict[str, str]:
    """Return date and versions."""
    return {"date": date.today().isoformat(), **{name: version(name) for name in PACKAGES}}
