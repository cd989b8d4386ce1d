"""A resumed training gives what an unbroken one gives: what `last.pt` lacks lies beside it, in full precision.

Ultralytics saves the moving average and the optimiser in float16, not the weights that are trained, and starts the
random numbers of a resumed training anew. Here, the random numbers of an epoch depend on seed and epoch alone, and
`resume-<epoch>.pt` holds the rest. It is written before `last.pt` and removed after the next one, so that a kill at
any point leaves a pair that belongs together.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.torch_utils import unwrap_model

from mod_vision.files import write_bytes
from mod_vision.yolo.archive import damage

TEACHER = "teacher_model."  # of a distillation: frozen, and read anew from its own checkpoint
HALF_PRECISION = "goes on from last.pt alone, in half precision, and gives other figures than an unbroken one"


class Resume:
    """What a training needs to go on as if it had not been killed.

    Attributes:
        restored: What was read, until the epoch that it belongs to is over; None in a training that is new.
        since_step: Batches since the last step of the optimiser: gradients accumulate across the end of an epoch.
    """

    def __init__(self, trainer: Any) -> None:
        self.folder = Path(trainer.wdir)
        self.restored: dict[str, Any] | None = None
        self.since_step, self.updates = 0, trainer.ema.updates
        self.step: Any = None  # the trainer's own, where this class decides when it is due
        if trainer.start_epoch:
            self._restore(trainer)
        elif RANK in (-1, 0):
            self.forget()  # of another training that had this folder

    def start_epoch(self, trainer: Any) -> None:
        """Seed all random numbers; at the start of a resumed training, take up what had accumulated."""
        seed_epoch(trainer)
        if self.restored is None or trainer.epoch != trainer.start_epoch:
            self.restored = None
            return
        self.since_step = self.restored["since_step"]
        parameters = dict(unwrap_model(trainer.model).named_parameters())
        for name, gradient in self.restored["gradients"].items():
            parameters[name].grad = gradient.to(parameters[name].device, copy=True)

    def end_batch(self, trainer: Any) -> None:
        """Count batches without a step; in a resumed training, do the step where the unbroken one had done it."""
        self.since_step += 1
        if self.step and self.since_step >= trainer.accumulate:
            self.step()
        if trainer.ema.updates != self.updates:
            self.since_step, self.updates = 0, trainer.ema.updates

    def save(self, trainer: Any) -> None:
        """Write the state at the end of an epoch, unless there is none to go on with."""
        if RANK not in (-1, 0) or not trainer.args.save or trainer.epoch + 1 >= trainer.epochs:
            return
        net = unwrap_model(trainer.model)
        state = {
            "model": {k: v for k, v in net.state_dict().items() if not k.startswith(TEACHER)},
            "ema": trainer.ema.ema.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "gradients": {k: p.grad for k, p in net.named_parameters() if self.since_step and p.grad is not None},
            "since_step": self.since_step,
            "recent_images": _recent_images(trainer),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        try:
            write_bytes(self._file(trainer.epoch + 1), buffer.getvalue())
        except OSError as error:
            LOGGER.warning(f"mod_vision: {error} If this training is killed and resumed, it {HALF_PRECISION}")

    def forget(self, but_epoch: int = 0) -> None:
        """Remove the states of all other epochs."""
        for file in self.folder.glob("resume-*.pt"):
            if file != self._file(but_epoch):
                file.unlink(missing_ok=True)

    def _file(self, epoch: int) -> Path:
        """Return the file for the state after an epoch (from 1)."""
        return self.folder / f"resume-{epoch}.pt"

    def _restore(self, trainer: Any) -> None:
        """Take up the state that belongs to the checkpoint.

        Raises:
            ValueError: If its file is damaged; the message says what to do.
        """
        file = Path(trainer.args.resume).with_name(self._file(trainer.start_epoch).name)
        state = _read(file) if file.is_file() else None
        fits = state is not None and _same_average(state["ema"], trainer.ema.ema)
        if not _on_all_ranks(fits, trainer.device):
            why = "belongs to another training" if file.is_file() else "is missing"
            LOGGER.warning(f"mod_vision: {file} {why}, so the training {HALF_PRECISION}")
            return
        assert state is not None
        unwrap_model(trainer.model).load_state_dict(state["model"], strict=False)  # without the teacher
        trainer.ema.ema.load_state_dict(state["ema"])
        for saved, group in zip(state["optimizer"]["param_groups"], trainer.optimizer.param_groups, strict=True):
            saved["fused"] = group.get("fused")  # the device of now, not that of the killed training, has such kernels
        trainer.optimizer.load_state_dict(state["optimizer"])
        if trainer.train_loader.num_workers == 0:
            for index in state["recent_images"]:
                trainer.train_loader.dataset.load_image(index)
        self.step, trainer.optimizer_step = trainer.optimizer_step, _not_yet
        self.restored = state


def seed_epoch(trainer: Any) -> None:
    """Make order and augmentation of an epoch depend on seed and epoch alone.

    Workers of a data loader run ahead and are kept from epoch to epoch; with them it is only where they start that is
    seeded.
    """
    entropy = (int(trainer.args.seed), int(trainer.epoch), max(RANK, 0))
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # the augmentation of Ultralytics draws from it
    torch.manual_seed(seed)
    loader = trainer.train_loader
    if loader.num_workers == 0 or loader.iterator is None:
        loader.reset()
        loader.generator.manual_seed(seed)


def _not_yet() -> None:
    """Stand in for the trainer's step, which `Resume.end_batch` calls when it is due."""


def _recent_images(trainer: Any) -> list[int]:
    """Return the images that a mosaic chooses from, as long as no workers have them."""
    return [int(i) for i in getattr(trainer.train_loader.dataset, "buffer", ())]


def _read(file: Path) -> dict[str, Any]:
    """Read a state.

    Raises:
        ValueError: If the file is damaged.
    """
    if broken := damage(file):
        raise ValueError(f"{file} is damaged ({broken}). If you delete it, the training {HALF_PRECISION}.")
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def _same_average(state: dict[str, Tensor], average: nn.Module) -> bool:
    """Return whether a moving average is the one that a checkpoint holds in half precision."""
    halves = average.state_dict()
    return state.keys() == halves.keys() and all(
        a.shape == b.shape and torch.equal(a.to(b.device, b.dtype), b) for a, b in _as_saved(state, halves)
    )


def _as_saved(state: dict[str, Tensor], halves: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pairs of tensors, those of the state rounded as Ultralytics rounds them."""
    for key, b in halves.items():
        a = state[key]
        yield (a.half().nan_to_num_() if a.is_floating_point() else a), b


def _on_all_ranks(fits: bool, device: torch.device) -> bool:
    """Return whether all ranks have the state: one without it would train other weights."""
    if not (dist.is_available() and dist.is_initialized()):
        return fits
    votes = torch.tensor(int(fits), device=device)
    dist.all_reduce(votes, dist.ReduceOp.MIN)
    return bool(votes)
