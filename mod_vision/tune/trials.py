"""`mod-vision tune`: train and score routed variants of a model, chosen by Optuna."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.trial import TrialState

from mod_vision.eval.cost.latency import Latency
from mod_vision.eval.evaluate import evaluate_model, save_evaluation
from mod_vision.files import writable_dir, write_text
from mod_vision.run_settings import RunSettings, ScoreSettings
from mod_vision.tune.space import Choices, candidate_of, candidates, check_choices
from mod_vision.tune.study import in_state, open_study
from mod_vision.yolo.model.graph import save
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.trust import check_data, restricted
from mod_vision.yolo.model.variants import DENSE, Candidate, read_train_args, routed_variant
from mod_vision.yolo.run.device import start


@dataclass(frozen=True)
class TuneSweep:
    """A sweep over routed variants of a model.

    Attributes:
        folder: Absolute path; each trial has a run folder of Ultralytics in it.
        study: Finished trials and settings.
        choices: What it chooses from.
        device: As in Ultralytics.
        lock: Held while a worker opens the study, or draws a candidate.
    """

    folder: Path
    study: optuna.Study
    choices: Choices
    device: str
    lock: FileLock

    def run(self, iterations: int) -> None:
        """Try candidates until `iterations` of them, or all there are, are finished, here or by other workers."""
        everything, waiting = set(candidates(self.choices)), False
        while True:
            with self.lock:
                optuna.storages.fail_stale_trials(self.study)
                done, running = in_state(self.study, TrialState.COMPLETE), in_state(self.study, TrialState.RUNNING)
                if len(done) >= iterations or done >= everything:
                    return
                if len(done) + len(running) < iterations and everything - done - running:
                    self.study.optimize(self._try, n_trials=1)
                    continue
            if not waiting:
                print(f"waiting for another worker: {'; '.join(map(str, running))}", flush=True)
            waiting = True
            time.sleep(1)

    def _try(self, trial: optuna.Trial) -> tuple[float, float]:
        """Train, score and record the candidate of a trial; return its latency, relative to dense, and its AP."""
        candidate = candidate_of({name: trial.suggest_categorical(name, v) for name, v in self.choices.items()})
        self.lock.release()
        held, folder = self.study.user_attrs, self.folder / candidate.slug
        weights = self._train(candidate, folder)
        run = ScoreSettings(held["imgsz"], self.device, held["threads"], held["batch"])  # training sets its own threads
        found = evaluate_model(weights, held["data"], run, project=str(folder), name="val", exist_ok=True)
        save_evaluation(found, folder / "evaluation.json")
        mask_ap, cost = found.mask["AP"] if found.mask else None, found.cost
        latency = cost.latency if candidate != DENSE else cost.dense_latency
        figures: dict[str, Any] = {"box_ap": found.box["AP"], "mask_ap": mask_ap, "gflops": cost.gflops}
        figures |= {"latency_ms": latency, "dense_latency_ms": cost.dense_latency}
        for name, value in figures.items():
            trial.set_user_attr(name, value)
        ap = found.box["AP"] if mask_ap is None else mask_ap
        print(f"{candidate}: {self.metric()} {100 * ap:.2f}, {latency}", flush=True)
        return latency.median / cost.dense_latency.median, ap

    def _train(self, candidate: Candidate, folder: Path) -> Path:
        """Train a candidate in an Ultralytics run folder, emptied first, and return the checkpoint."""
        held, start = self.study.user_attrs, self.folder / "start.pt"
        args = {**held["train_args"], **{key: held[key] for key in ("data", "imgsz", "epochs", "batch")}}
        args |= {"plots": False, "device": self.device, "project": str(self.folder), "name": folder.name}
        print(f"\n{candidate}: training for {args['epochs']} epochs", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        save(routed_variant(load_model(start), candidate, held["classes"]), folder / "start.pt", start)
        with restricted():  # the model is built anew from the YAML in the checkpoint
            load_model(folder / "start.pt").train(**args, exist_ok=True)
        return folder / "weights" / "best.pt"

    def rows(self) -> list[dict[str, Any]]:
        """Return the finished trials, fastest first: candidate, `speed_up`, `ap` in [0, 1], cost, weights, `pareto`."""
        front, rows = {trial.number for trial in self.study.best_trials}, []
        for trial in sorted(self.study.get_trials(states=(TrialState.COMPLETE,)), key=lambda trial: trial.values):
            candidate, (latency, ap) = candidate_of(trial.params), trial.values
            row = {**candidate._asdict(), "speed_up": 1 / latency, "ap": ap, **trial.user_attrs}
            weights = str(self.folder / candidate.slug / "weights" / "best.pt")
            rows.append({**row, "weights": weights, "pareto": trial.number in front})
        return rows

    def metric(self) -> str:
        """Return the name of the AP that counts."""
        return "mask AP" if self.study.user_attrs["task"] == "segment" else "box AP"

    def table(self) -> str:
        """Return all trials as text, fastest first, those on the Pareto front marked."""
        held, head = self.study.user_attrs, f"{'capacity':<10}{'router':<10}{'stages':<14}{self.metric():>8}"
        lines = [f"  {head}{'GFLOPs':>9}   {'median (quartiles)':<28}{'dense':>9}{'speed-up':>10}"]
        for row in self.rows():
            mark, latency, dense = (
                "*" if row["pareto"] else " ",
                Latency(*row["latency_ms"]),
                row["dense_latency_ms"][0],
            )
            line = f"{mark} {row['capacity']:<10g}{row['router']:<10}{row['stages']:<14}{100 * row['ap']:>8.2f}"
            lines.append(f"{line}{row['gflops']:>9.2f}   {latency!s:<28}{dense:>6.1f} ms{row['speed_up']:>10.2f}")
        where = f"{held['imgsz']} px, batch 1, float32, {held['device']}, {held['threads']} threads"
        lines += [
            "* on the Pareto front: no other trial is as fast and as accurate, and better in one",
            f"AP in percent; latency at {where}, in turn with the dense baseline of each trial",
        ]
        return "\n".join(lines)

    def save(self) -> None:
        """Write `results.json`."""
        figures = {"settings": self.study.user_attrs, "trials": self.rows()}
        write_text(self.folder / "results.json", json.dumps(figures, indent=2) + "\n")


def tune(
    model: str,
    data: str,
    capacity: Sequence[float],
    router: Sequence[str],
    stages: Sequence[str],
    epochs: int = 20,
    iterations: int = 12,
    batch: int = 16,
    cfg: str | None = None,
    run: RunSettings = RunSettings(),  # noqa: B008  # frozen
    out: str | Path = "runs/mod-vision-tune",
) -> TuneSweep:
    """Train and score routed variants of a model and its dense baseline; a sweep that was stopped goes on.

    All start from the same weights. Optuna's NSGA-II chooses them by latency and AP. The study is `study.db` in `out`,
    or lies in the database that the environment variable OPTUNA_STORAGE names. Workers that are started with the same
    arguments, but for the number of the `device`, share a sweep.

    Args:
        model: Routed model: checkpoint or YAML name.
        data: Data YAML; trials train on `train` and are scored on `val`.
        capacity: Shares of tokens below 1 to choose from.
        router: Names of routers to choose from.
        stages: What to route: `all`, or rows of the model YAML such as `6` or `6+8`.
        epochs: Epochs per trial.
        iterations: Number of trials, the dense baseline among them.
        batch: Images per batch.
        cfg: YAML with more of Ultralytics' training arguments.
        run: How trials are trained, scored and timed.
        out: Folder for everything it writes.

    Raises:
        FileNotFoundError: If model, data or cfg is missing.
        ValueError: If an argument is not valid, or `out` or the database holds something else.
    """
    if iterations < 2:
        raise ValueError(f"iterations={iterations}: give at least 2, the dense baseline and one routed candidate.")
    yolo = load_model(model)
    if yolo.task not in ("detect", "segment"):
        raise ValueError(f"model {model} is for {yolo.task}; tune is for detection and segmentation.")
    choices, found = check_choices(yolo, capacity, router, stages), check_data(data)
    settings = {"model": str(model), "task": yolo.task, "data": str(Path(found["yaml_file"]).resolve())}
    run = start(run)
    settings |= {"classes": int(found["nc"]), "imgsz": run.imgsz, "epochs": epochs, "batch": batch}
    settings |= {"device": run.device.partition(":")[0], "threads": run.threads}
    settings |= {"train_args": read_train_args(cfg), **choices}
    folder = writable_dir(out).resolve()
    with FileLock(folder / "sweep.lock") as lock:
        study = open_study(folder, settings, choices)
        if not (folder / "start.pt").is_file():
            save(yolo, folder / "start.pt", model)
    sweep = TuneSweep(folder, study, choices, run.device, lock)
    sweep.run(iterations)
    return sweep
