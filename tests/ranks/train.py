"""One rank of a real training by Ultralytics, on CPU, and what it did written to a folder.

With a fourth word it is killed in the second epoch, or, if that is a checkpoint, goes on from it.
"""

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from helpers import layers
from torch import nn
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.torch_utils import unwrap_model

FOLDER, MODEL, DATA = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
LIFE = sys.argv[4] if len(sys.argv) > 4 else ""
RANK = int(os.environ["RANK"])


class OnCpu(nn.parallel.DistributedDataParallel):
    """Without the `device_ids` that Ultralytics gives, which torch refuses for modules on the CPU."""

    def __init__(self, module: nn.Module, device_ids: list, **words) -> None:
        super().__init__(module, **words)


class CpuTrainer(DetectionTrainer):
    """Ultralytics distributes over accelerators only; this says the same to gloo on CPUs."""

    def __init__(self, **words) -> None:
        super().__init__(**words)
        self.world_size = int(os.environ["WORLD_SIZE"])  # counted from `device=0,1`, 0 for CPUs

    def _setup_ddp(self) -> None:
        nn.parallel.DistributedDataParallel = OnCpu
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))

    def final_eval(self) -> None:
        """Left out: the validator puts a rank's model on an accelerator."""


def main() -> None:
    used, loaded = [], []

    def end_batch(trainer: DetectionTrainer) -> None:
        if (LIFE, trainer.epoch) == ("killed", 1):
            os.kill(os.getpid(), signal.SIGKILL)
        used.append([layer.capacities for layer in layers(unwrap_model(trainer.model))])

    words = {"imgsz": 64, "batch": 4, "epochs": 2, "workers": 0, "plots": False, "amp": False, "device": "cpu"}
    words |= {"project": str(FOLDER / f"rank{RANK}"), "name": "run"}  # apart, to see who writes what
    resumed = LIFE.endswith(".pt")
    trainer = CpuTrainer(overrides={"resume": LIFE} if resumed else {"model": MODEL, "data": DATA, **words})
    trainer.add_callback("on_train_batch_end", end_batch)
    trainer.add_callback("on_train_epoch_end", lambda trainer: loaded.extend(trainer.train_loader.sampler))
    trainer.train()
    weights = {name: p.detach() for name, p in unwrap_model(trainer.model).named_parameters()}
    ema = [layer.capacities for layer in layers(trainer.ema.ema)]
    torch.save({"used": used, "weights": weights, "images": loaded, "ema": ema}, FOLDER / f"rank{RANK}.pt")
    dist.destroy_process_group()


main()
