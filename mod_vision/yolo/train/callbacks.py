"""What a training of a routed model does beside the loss: capacity schedule and a watch over the routes.

Ultralytics gives every trainer a copy of its default callbacks, in the workers of a distributed training too; ours are
among them. Trainings of dense models pass through untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import distributed as dist
from torch import nn
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.patches import override_configs
from ultralytics.utils.torch_utils import unwrap_model

from mod_vision.files import write_bytes
from mod_vision.routing import RoutedLayer, routed_layers
from mod_vision.routing.finite import not_finite
from mod_vision.routing.statistics import RouteHealth, RouteStatistics
from mod_vision.routing.window_layer import WindowedLayer
from mod_vision.routing.window_routers import OracleRouter
from mod_vision.yolo.model.settings import ModSettings
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.train.resume import Resume, seed_epoch
from mod_vision.yolo.train.run_folder import (
    check_free,
    check_there,
    forget_from,
    remove_half_written,
    restore_best,
    rows_before,
    take,
    write_rows,
    write_whole,
)

ROUTES_CSV = "routing.csv"
COLUMNS = ("epoch", "layer", *RouteHealth._fields)


class RoutedTraining:
    """One training of a routed model.

    Attributes:
        net: The model that is trained; with distillation, the student.
        layers: Its routed layers by name.
        nominal: The capacities that the layers have outside of the training.
        step: Batches trained on, those before a resume included.
        steps: Batches of the whole training.
        resume: What makes a resumed training equal to an unbroken one.
    """

    def __init__(self, trainer: Any, net: nn.Module) -> None:
        self.net: Any = net
        self.layers: dict[str, RoutedLayer] = dict(routed_layers(net))
        self.nominal = [layer.capacities for layer in self.layers.values()]
        self.schedule = ModSettings.from_yaml(self.net.yaml.get("mod")).schedule
        self.seed = int(trainer.args.seed)
        self.csv = Path(trainer.save_dir) / ROUTES_CSV
        self.alarmed: set[str] = set()
        self.resume = Resume(trainer)  # before anything on the disk changes: it can refuse
        if RANK in (-1, 0):
            self._say_windows()
            self.lock = take(Path(trainer.save_dir))
            self.args = Path(trainer.save_dir) / "args.yaml"
            self.own_args = self.args.read_bytes()
            remove_half_written(Path(trainer.save_dir))
            write_whole(trainer)
            if trainer.start_epoch:  # the kill can have come between the row of an epoch and its checkpoint
                forget_from(trainer.csv, trainer.start_epoch + 1)
                restore_best(trainer)
            else:
                self.resume.forget()  # those of another training that had this folder

    def _say_windows(self) -> None:
        """Say so if what is trained are windows: the losses are of a part of each image."""
        entry = next((layer for layer in self.layers.values() if isinstance(layer, WindowedLayer)), None)
        if entry is not None and not entry.dense:
            LOGGER.info(
                f"mod_vision: trains on windows of {entry.window} px, {100 * entry.capacities[0]:.0f} % of the pixels, "
                "around the labelled objects first; capacity: 1.0 in mod.windows trains on whole images"
            )

    def start_epoch(self, trainer: Any) -> None:
        """Count batches and routes anew; a repeated epoch starts where it started before."""
        per_epoch = len(trainer.train_loader)
        self.step, self.steps = per_epoch * trainer.epoch, per_epoch * trainer.epochs
        self.statistics = {name: RouteStatistics() for name in self.layers}
        first = self.schedule.first_routed(trainer.epochs)
        self.warm = trainer.epoch < first
        if self.schedule.warmup and trainer.epoch == first:
            seed_epoch(trainer)
            self._fit(trainer)
        self.resume.start_epoch(trainer)

    def start_batch(self) -> None:
        """Set what depends on the progress of the training."""
        self.net.mod_progress = min(1.0, self.step / self.steps)
        if not self.schedule.constant:
            self._set(
                [(1.0,) * len(c) for c in self.nominal]
                if self.warm
                else self.schedule.capacities(self.nominal, self.step, self.seed)
            )

    def _set(self, wanted: Sequence[Sequence[float]]) -> None:
        """Set the capacities of all layers."""
        for layer, capacities in zip(self.layers.values(), wanted, strict=True):
            layer.set_capacity(capacities)

    def _fit(self, trainer: Any) -> None:
        """Fit routers and bypasses to what the warm-up has trained, alike on all ranks and in the moving average."""
        from mod_vision.yolo.train.fit import endless, fit_net  # need all of Ultralytics, which is being imported here

        self._set(self.nominal)
        LOGGER.info("mod_vision: the dense warm-up is over, the routing is fitted")
        batches = (trainer.preprocess_batch(batch) for batch in endless(trainer.train_loader))
        with override_configs(trainer.args, {"multi_scale": 0.0}):  # maps of one size
            fit_net(self.net, batches)
        prefixes = tuple(f"{name}.{part}." for name in self.layers for part in ("router", "skip"))
        own = {name: tensor for name, tensor in self.net.state_dict().items() if name.startswith(prefixes)}
        if dist.is_available() and dist.is_initialized():
            for tensor in own.values():
                dist.broadcast(tensor, src=0)
        if trainer.ema:
            student(trainer.ema.ema).load_state_dict(own, strict=False)

    def end_batch(self) -> None:
        """Count the routes of the batch."""
        self.step += 1
        for name, layer in self.layers.items():
            if layer.plan is not None:
                self.statistics[name].update(layer.plan)

    def end_epoch(self, epoch: int) -> None:
        """Append the epoch's figures to `routing.csv`, and warn once about a layer whose routes have collapsed."""
        if RANK not in (-1, 0):
            return
        check_there(self.csv.parent)
        rows = rows_before(self.csv, epoch, COLUMNS) or [list(COLUMNS)]
        for name, statistics in self.statistics.items():
            health = statistics.result()
            if health is None:
                continue
            rows.append([str(epoch), name, str(health.images), *(f"{value:.4f}" for value in health[1:])])
            if health.alarm and name not in self.alarmed:
                self.alarmed.add(name)
                LOGGER.warning(f"mod_vision: {name}, epoch {epoch}: {health.alarm}; see {self.csv}")
        write_rows(self.csv, rows)

    def check_scores(self, trainer: Any) -> None:
        """Name the first layer whose router gave no numbers in this epoch; Ultralytics goes back to its checkpoint.

        Raises:
            RuntimeError: If the loss is lost and there is no epoch to go back to.
        """
        name = next((name for name, statistics in self.statistics.items() if not statistics.finite), None)
        if name is None:
            return
        said = f"epoch {trainer.epoch + 1}: {not_finite(name)}"
        if trainer.epoch == trainer.start_epoch and not trainer.loss.isfinite():
            raise RuntimeError(f"{said}, and neither does the loss; start again with a lower lr0, or with amp=False.")
        LOGGER.warning(f"mod_vision: {said}")

    def free_folder(self) -> None:
        """Give the folder back, with the arguments of this training if one that was refused has overwritten them."""
        try:
            if self.args.is_file() and self.args.read_bytes() != self.own_args:
                write_bytes(self.args, self.own_args)
        except OSError as error:
            LOGGER.warning(f"mod_vision: {self.args} could not be put right: {error}")
        finally:
            self.lock.release()


def student(model: Any) -> Any:
    """Return the model that is trained: with distillation, the student."""
    model = unwrap_model(model)
    return getattr(model, "student_model", model)


def _check_folder(trainer: Any) -> None:
    """Refuse to write into a training that is running; Ultralytics has overwritten its `args.yaml` by then."""
    check_free(Path(trainer.save_dir))


def _start(trainer: Any) -> None:
    """Take over a training of a routed model."""
    net = student(trainer.model)
    _check_windows(trainer, net)
    trainer.mod_training = RoutedTraining(trainer, net) if any(routed_layers(net)) else None


def _check_windows(trainer: Any, net: nn.Module) -> None:
    """Refuse what does not go with windows, and train their router whatever rows are frozen: it is none of them.

    Raises:
        ValueError: If the features of a teacher are asked for, or the router goes by the labels.
    """
    head = head_of(net)
    if head is None:
        return
    if getattr(trainer.args, "distill_model", None):
        raise ValueError(
            "distill_model= compares maps of whole images, and this model has windows; leave it out, or distil the "
            "dense model and give its weights to this one."
        )
    if isinstance(head.entry.router, OracleRouter):
        raise ValueError("router: oracle goes by the labels, so it is for `mod-vision val`; train with another router.")
    for parameter in head.entry.router.parameters():
        parameter.requires_grad_()


def _start_epoch(trainer: Any) -> None:
    if training := getattr(trainer, "mod_training", None):
        training.start_epoch(trainer)


def _start_batch(trainer: Any) -> None:
    if training := getattr(trainer, "mod_training", None):
        training.start_batch()


def _end_batch(trainer: Any) -> None:
    if training := getattr(trainer, "mod_training", None):
        training.resume.end_batch(trainer)
        training.end_batch()


def _end_epoch(trainer: Any) -> None:
    if training := getattr(trainer, "mod_training", None):
        training.end_epoch(trainer.epoch + 1)
        training.check_scores(trainer)
        if trainer.ema:  # it is validated next; its losses shall have the weights of this epoch's
            trainer.ema.ema.mod_progress = training.net.mod_progress
        training.resume.save(trainer)


def _saved(trainer: Any) -> None:
    """Keep the state that belongs to the checkpoint just written, and no other; end if the folder has vanished."""
    if training := getattr(trainer, "mod_training", None):
        check_there(Path(trainer.save_dir))
        training.resume.forget(but_epoch=trainer.epoch + 1)


def _end(trainer: Any) -> None:
    """Remove the last state; what is finished cannot be resumed."""
    if training := getattr(trainer, "mod_training", None):
        training.resume.forget()


def _teardown(trainer: Any) -> None:
    """Free the folder, also after an error or Ctrl-C."""
    training = getattr(trainer, "mod_training", None)
    if training is not None and RANK in (-1, 0):
        training.free_folder()


CALLBACKS = {
    "on_pretrain_routine_start": _check_folder,
    "on_train_start": _start,
    "on_train_epoch_start": _start_epoch,
    "on_train_batch_start": _start_batch,
    "on_train_batch_end": _end_batch,
    "on_train_epoch_end": _end_epoch,
    "on_model_save": _saved,
    "on_train_end": _end,
    "teardown": _teardown,
}
