"""`yolo train` on the CPU in bfloat16 and channels-last memory, which Ultralytics leaves to GPUs.

Takes the arguments of `yolo`, as in `python -m mod_vision.yolo.train.cpu train model=yolo26n-mod.yaml device=cpu`.
"""

from __future__ import annotations

from typing import Any

import torch
from ultralytics.cfg import entrypoint
from ultralytics.engine import trainer as engine
from ultralytics.utils.callbacks.base import default_callbacks


def main() -> None:
    """Run Ultralytics' command line with a faster forward."""
    engine.autocast = lambda enabled, device: torch.autocast(device, torch.bfloat16)
    default_callbacks["on_pretrain_routine_end"].append(_channels_last)
    entrypoint()


def _channels_last(trainer: Any) -> None:
    """Lay out the weights as the convolutions want them; the images follow."""
    trainer.model.to(memory_format=torch.channels_last)
    trainer.ema.ema.to(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
