"""Real trainings: columns of the router's losses, capacity schedules, resuming, distillation, and `routing.csv`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers import layers, read_csv, write_mod_yaml
from torch import nn
from ultralytics import YOLO
from ultralytics.utils.torch_utils import unwrap_model

from mod_vision.routing.schedule import CapacitySchedule
from mod_vision.yolo.model.loading import load_model

COLUMNS = ["guide", "budget", "z"]
ALL_LOSSES = {"guide": 0.5, "budget": 0.1, "z": 0.001}
ELASTIC = {"elastic": [0.125, 1.0]}
SCHEDULE = {"warmup": 0.3, **ELASTIC}
NAMES = ["model.6", "model.8"]  # the routed layers of yolo26-mod-hybrid


def in_all_blocks(capacity: float) -> list[tuple[float, ...]]:
    """The capacities of the two stages of yolo26n-mod-hybrid."""
    return [(capacity,) * 6, (capacity,) * 4]


DENSE, NOMINAL = in_all_blocks(1.0), in_all_blocks(0.25)


class StoppedError(Exception):
    """Ends a training as a crash would."""


def capacities(model: nn.Module) -> list[tuple[float, ...]]:
    return [layer.capacities for layer in layers(model)]


@dataclass
class Watch:
    """Write down what each step of a training did, by its number in the whole training."""

    stop_after: int | None = None
    used: dict[int, list[tuple[float, ...]]] = field(default_factory=dict)
    ema: list[list[tuple[float, ...]]] = field(default_factory=list)
    teacher: list[list[tuple[float, ...]]] = field(default_factory=list)
    columns: list[list[str]] = field(default_factory=list)
    updates: int = 0

    def end_batch(self, trainer: Any) -> None:
        model = unwrap_model(trainer.model)
        step = trainer.mod_training.step - 1 if trainer.mod_training else len(self.used)
        self.used[step] = capacities(getattr(model, "student_model", model))
        self.columns.append(list(trainer.loss_items))
        ema = trainer.ema.ema
        self.ema.append(capacities(getattr(ema, "student_model", ema)))
        self.updates = trainer.ema.updates
        if hasattr(model, "teacher_model"):
            self.teacher.append(capacities(model.teacher_model))

    def end_epoch(self, trainer: Any) -> None:
        if trainer.epoch + 1 == self.stop_after:
            raise StoppedError  # after the epoch's rows were written, before its checkpoint is

    def train(self, model: Path | str, **words: Any) -> Path:
        """Train a model with `words` and return the folder of the run."""
        yolo = YOLO(str(model))
        yolo.add_callback("on_train_batch_end", self.end_batch)
        yolo.add_callback("on_train_epoch_end", self.end_epoch)
        try:
            yolo.train(**words)
        except StoppedError:
            assert self.stop_after
        return Path(yolo.trainer.save_dir)


@pytest.fixture
def words(tiny_data, tmp_path) -> dict[str, Any]:
    return training_words(tiny_data, tmp_path)


def training_words(data: Path, project: Path) -> dict[str, Any]:
    still = {"workers": 0, "plots": False, "amp": False, "device": "cpu", "name": "run"}
    return {"data": str(data), "imgsz": 64, "batch": 4, "epochs": 1, "project": str(project), **still}


THREE_EPOCHS = {"epochs": 3, "batch": 2}


def own_yaml(folder: Path, **mod: Any) -> Path:
    return write_mod_yaml(folder, {"capacity": 0.25, **mod})


def scheduled_yaml(folder: Path) -> Path:
    return own_yaml(folder, **SCHEDULE, loss=ALL_LOSSES)


@pytest.fixture(scope="module")
def scheduled(tiny_data, tmp_path_factory) -> tuple[Path, Watch]:
    """Three epochs of four batches with warm-up, elastic capacity and all losses."""
    folder = tmp_path_factory.mktemp("scheduled")
    watch = Watch()
    return watch.train(scheduled_yaml(folder), **training_words(tiny_data, folder) | THREE_EPOCHS), watch


@pytest.fixture(scope="module")
def dense(tiny_data, tmp_path_factory) -> Path:
    """A dense model, trained for an epoch."""
    return Watch().train("yolo26n.yaml", **training_words(tiny_data, tmp_path_factory.mktemp("dense")))


def scheduled_capacities(steps: int, dense: int = 0, seed: int = 0) -> dict[int, list[tuple[float, ...]]]:
    schedule = CapacitySchedule(elastic=tuple(ELASTIC["elastic"]))
    return {step: DENSE if step < dense else schedule.capacities(NOMINAL, step, seed) for step in range(steps)}


# ---------------------------------------------------------------------------------------------------------- schedule


def test_each_step_has_the_capacity_of_the_schedule(scheduled):
    _, watch = scheduled
    assert watch.used == scheduled_capacities(12, dense=4), "a warm-up of 0.3 of three epochs is one"
    assert watch.used[6] == in_all_blocks(0.125)
    assert watch.used[7] == DENSE, "the highest of the range"
    assert len({tuple(used) for used in watch.used.values()}) >= 4


def test_all_steps_have_the_same_columns(scheduled):
    run, watch = scheduled
    assert watch.columns == [watch.columns[0]] * 12
    assert watch.columns[0][-3:] == COLUMNS
    rows = read_csv(run / "results.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for name in COLUMNS:
        assert [float(row[f"train/{name}"]) > 0 for row in rows] == [False, True, True], name
        assert all(float(row[f"val/{name}"]) > 0 for row in rows), name


def test_checkpoints_keep_the_models_own_capacity(scheduled):
    run, watch = scheduled
    assert watch.ema == [NOMINAL] * 12, "the averaged model is validated and saved, and is not on the schedule"
    for name in ("best.pt", "last.pt"):
        model = load_model(run / "weights" / name).model
        assert capacities(model) == NOMINAL
        assert model.yaml["mod"]["elastic"] == [0.125, 1.0]


def test_routing_csv_has_a_row_per_epoch_and_layer(scheduled):
    run, _ = scheduled
    rows = read_csv(run / "routing.csv")
    assert [(row["epoch"], row["layer"]) for row in rows] == [(str(e), name) for e in (2, 3) for name in NAMES]
    for row in rows:
        assert list(row) == ["epoch", "layer", "images", "routed", "entropy", "variance", "never"]
        assert row["images"] == "8" or 0 < int(row["images"]) < 8, "steps at capacity 1 route nothing"
        assert all(0 <= float(row[name]) <= 1 for name in ("routed", "entropy", "variance", "never"))


def test_resuming_goes_on_as_if_unbroken(scheduled, words, tmp_path):
    unbroken, watch = scheduled
    first = Watch(stop_after=2)
    run = first.train(scheduled_yaml(tmp_path), **words | THREE_EPOCHS)
    assert {row["epoch"] for row in read_csv(run / "routing.csv")} == {"2"}
    second = Watch()
    assert second.train(run / "weights" / "last.pt", resume=True) == run
    assert list(first.used) == list(range(8))
    assert list(second.used) == list(range(4, 12)), "the epoch without a checkpoint once more"
    assert first.used | second.used == second.used | first.used == watch.used
    keys = [[(row["epoch"], row["layer"]) for row in read_csv(r / "routing.csv")] for r in (run, unbroken)]
    assert keys[0] == keys[1]
    assert capacities(load_model(run / "weights" / "last.pt").model) == NOMINAL


def test_gradient_accumulation_counts_batches(words, tmp_path):
    watch = Watch()
    watch.train(own_yaml(tmp_path, **ELASTIC), **words | {"batch": 2, "nbs": 8, "warmup_epochs": 0, "seed": 5})
    assert watch.used == scheduled_capacities(4, seed=5)
    assert watch.updates < 4, "fewer steps of the optimiser than batches"
    assert watch.ema == [NOMINAL] * 4


@pytest.mark.parametrize("warmup", [0.0, 0.5])
def test_the_routing_is_fitted_when_the_warmup_ends(words, tmp_path, warmup):
    """Without learning, all that moves is what is fitted; the moving average, which is saved, has it at once."""
    still = {"epochs": 2, "optimizer": "SGD", "lr0": 1e-12, "warmup_epochs": 0, "weight_decay": 0.0}
    run = Watch().train(own_yaml(tmp_path, warmup=warmup), **words | still)
    for layer in layers(load_model(run / "weights" / "last.pt").model):
        assert (layer.skip.weight.abs().max() > 1e-3) == (warmup > 0)
        assert (layer.router.proj.weight.abs().max() > 1e-3) == (warmup > 0)


# ----------------------------------------------------------------------------------------------- columns, other models


def test_segmentation_has_all_columns(words, tmp_path):
    mod = {"capacity": 0.25, "warmup": 0.5, "loss": ALL_LOSSES}
    model = write_mod_yaml(tmp_path, mod, "yolo26n-mod-hybrid-x-seg.yaml", "yolo26-mod-hybrid-seg.yaml")
    watch = Watch()
    run = watch.train(model, **words)
    (row,) = read_csv(run / "results.csv")
    for name in COLUMNS:
        assert float(row[f"train/{name}"]) > 0
        assert float(row[f"val/{name}"]) > 0
    assert watch.columns[0][-3:] == COLUMNS
    assert watch.used == {0: NOMINAL, 1: NOMINAL}, "one epoch is always routed"
    assert len(read_csv(run / "routing.csv")) == 2


def test_a_dense_model_trains_as_ever(dense):
    assert (dense / "results.csv").is_file()
    assert not (dense / "routing.csv").exists()
    (row,) = read_csv(dense / "results.csv")
    assert not any(name in column for column in row for name in COLUMNS)


def test_distillation_from_a_dense_teacher(dense, words, tmp_path):
    watch = Watch()
    model = own_yaml(tmp_path, **ELASTIC, loss=ALL_LOSSES)
    run = watch.train(model, **words, distill_model=str(dense / "weights" / "best.pt"))
    (row,) = read_csv(run / "results.csv")
    for name in (*COLUMNS, "dis_loss"):
        assert float(row[f"train/{name}"]) > 0, name
    assert watch.used == scheduled_capacities(2)
    assert watch.ema == [NOMINAL] * 2
    assert [row["layer"] for row in read_csv(run / "routing.csv")] == NAMES
    student = load_model(run / "weights" / "best.pt").model
    assert capacities(getattr(student, "student_model", student)) == NOMINAL


def test_the_schedule_leaves_a_routed_teacher_alone(scheduled, words, tmp_path):
    teacher, watch = scheduled[0] / "weights" / "best.pt", Watch()
    run = watch.train(own_yaml(tmp_path, **ELASTIC), **words, distill_model=str(teacher))
    assert watch.teacher == [NOMINAL] * 2
    assert watch.used == scheduled_capacities(2)
    assert [row["layer"] for row in read_csv(run / "routing.csv")] == NAMES


# -------------------------------------------------------------------------------------------------------------- alarm


def test_collapsed_routes_are_said_once(words, tmp_path, caplog):
    """The grid router gives all images the same routes."""
    run = Watch().train(own_yaml(tmp_path, router="grid"), **words | {"epochs": 2, "val": False})
    rows = read_csv(run / "routing.csv")
    assert [float(row["variance"]) for row in rows] == [0.0] * 4
    assert [float(row["never"]) for row in rows] == [0.75] * 4
    said = [line for line in caplog.messages if "mod_vision:" in line]
    assert len(said) == 2
    for name, line in zip(NAMES, said, strict=True):
        assert f"mod_vision: {name}, epoch 1: routes are the same for all images" in line
        assert str(run / "routing.csv") in line
