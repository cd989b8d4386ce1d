"""A resumed training gives what an unbroken one gives: what `last.pt` lacks lies beside it, in full precision.

Ultralytics saves the moving average in float16, SGD's momentum too, not the weights that are trained, and starts the
random numbers of a resumed training anew. Here, the random numbers of an epoch depend on seed and epoch alone, and
`resume-<epoch>.pt` holds the rest. It is written before the `last.pt` of its epoch and removed after the next one, so
that a kill at any point leaves a pair that belongs together.
"""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.torch_utils import unwrap_model

from mod_vision.files import write_bytes
from mod_vision.yolo.model.archive import constructed, damage

TEACHER = "teacher_model."  # of a distillation: frozen, and read anew from its own checkpoint
HALF_PRECISION = "goes on from last.pt alone, in half precision, and gives other figures than an unbroken one"


class Resume:
    """What a training needs to go on as if it had not been killed.

    Attributes:
        since_step: Batches since the last step of the optimiser: gradients accumulate across the end of an epoch.
        gradients: What the training that is resumed had accumulated, until the first epoch takes it up.
        step: The trainer's own step of the optimiser, while this class decides when it is due.

    Raises:
        ValueError: If the state that belongs to the checkpoint is damaged; the message says what to do.
    """

    def __init__(self, trainer: Any) -> None:
        self.folder = Path(trainer.wdir)
        self.since_step, self.updates = 0, trainer.ema.updates
        self.gradients: dict[str, Tensor] = {}
        self.step: Any = None
        self.epoch = -1
        if trainer.start_epoch:
            self._restore(trainer)
            if trainer.start_epoch > trainer.epochs - trainer.args.close_mosaic:
                trainer._close_dataloader_mosaic()  # Ultralytics does it too late for a fit of the routing

    def start_epoch(self, trainer: Any) -> None:
        """Seed all random numbers; at the start of a resumed training, take up what had accumulated."""
        seed_epoch(trainer)
        again, self.epoch = trainer.epoch == self.epoch, trainer.epoch
        if again and self.step:  # Ultralytics has dropped the gradients, and counts anew when to do a step
            trainer.optimizer_step, self.step = self.step, None
        gradients, self.gradients = self.gradients, {}
        parameters = dict(unwrap_model(trainer.model).named_parameters())
        for name, gradient in gradients.items():
            if parameters[name].requires_grad:
                parameters[name].grad = gradient.to(parameters[name].device)

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
            "recent_images": list(getattr(trainer.train_loader.dataset, "buffer", ())),  # mosaics choose from these
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
            epoch = file.stem.removeprefix("resume-")
            if epoch.isdecimal() and int(epoch) != but_epoch:
                try:
                    file.unlink(missing_ok=True)
                except OSError as error:
                    LOGGER.warning(f"mod_vision: {file} is not needed any more, but could not be removed: {error}")

    def _file(self, epoch: int) -> Path:
        """Return the file for the state after an epoch (from 1)."""
        return self.folder / f"resume-{epoch}.pt"

    def _restore(self, trainer: Any) -> None:
        """Take up the state that belongs to the checkpoint."""
        file = Path(trainer.args.resume).with_name(self._file(trainer.start_epoch).name)
        state = _read(file) if file.is_file() else None
        fits = state is not None and _same_average(state["ema"], trainer.ema.ema)
        if not _on_all_ranks(fits, trainer.device):
            why = f"does not fit {Path(trainer.args.resume).name}" if state else "is missing"
            LOGGER.warning(f"mod_vision: {file} {why}, so the training {HALF_PRECISION}")
            return
        assert state is not None
        unwrap_model(trainer.model).load_state_dict(state["model"], strict=False)  # without the teacher
        trainer.ema.ema.load_state_dict(state["ema"])
        for saved, group in zip(state["optimizer"]["param_groups"], trainer.optimizer.param_groups, strict=True):
            saved["fused"] = group.get("fused")  # the device of now, not that of the killed training, has such kernels
        trainer.optimizer.load_state_dict(state["optimizer"])
        dataset = trainer.train_loader.dataset
        if trainer.train_loader.num_workers == 0 and all(i < len(dataset) for i in state["recent_images"]):
            for index in state["recent_images"]:
                dataset.load_image(index)
        self.step, trainer.optimizer_step = trainer.optimizer_step, _not_yet
        self.gradients, self.since_step = state["gradients"], state["since_step"]


def seed_epoch(trainer: Any) -> None:
    """Make order and augmentation of an epoch depend on seed and epoch alone.

    Workers of a data loader run ahead and are kept from epoch to epoch; with them it is only where they start that is
    seeded.
    """
    again = trainer.nan_recovery_attempts  # or a repeated epoch would end as before
    entropy = (int(trainer.args.seed), int(trainer.epoch), max(RANK, 0), again)
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # the augmentation of Ultralytics draws from it
    torch.manual_seed(seed)
    loader = trainer.train_loader
    if hasattr(loader.sampler, "set_epoch"):  # Ultralytics does it after a fit has drawn batches
        loader.sampler.set_epoch(trainer.epoch)
    known = hasattr(loader, "reset") and loader.generator is not None  # a trainer of the user's own can have another
    if known and (loader.num_workers == 0 or loader.iterator is None):
        loader.reset()
        loader.generator.manual_seed(seed)


def _not_yet() -> None:
    """Stand in for the trainer's step, which `Resume.end_batch` calls when it is due."""


def _read(file: Path) -> dict[str, Any]:
    """Read a state.

    Raises:
        ValueError: If the file is damaged, or holds more than tensors and numbers.
    """
    if broken := damage(file):
        raise ValueError(f"{file} is damaged ({broken}). If you delete it, the training {HALF_PRECISION}.")
    if called := constructed(file):  # of classes that `weights_only` takes since a checkpoint has held them
        raise ValueError(f"{file} calls {called[0]}, it is not ours. If you delete it, the training {HALF_PRECISION}.")
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def _same_average(state: dict[str, Tensor], average: nn.Module) -> bool:
    """Return whether a moving average is the one that a checkpoint holds, rounded as Ultralytics rounds it."""
    rounded = {key: v.half().nan_to_num_() if v.is_floating_point() else v for key, v in state.items()}
    halves = average.state_dict()
    return rounded.keys() == halves.keys() and all(
        torch.equal(rounded[key].to(half.device, half.dtype), half) for key, half in halves.items()
    )


def _on_all_ranks(fits: bool, device: torch.device) -> bool:
    """Return whether all ranks have the state: one without it would train other weights."""
    if not (dist.is_available() and dist.is_initialized()):
        return fits
    votes = torch.tensor(int(fits), device=device)
    dist.all_reduce(votes, dist.ReduceOp.MIN)
    return bool(votes)
