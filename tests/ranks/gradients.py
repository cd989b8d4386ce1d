"""One rank of distributed steps: half of a batch, its gradients and routes at some capacities written to a folder.

Rank 0 takes each step alone with the whole batch first. The task's loss is a mean over images, which Ultralytics' own
is not (it divides by the objects of a rank's batch), and BatchNorm keeps its statistics, which are of a rank's batch.
"""

import copy
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from helpers import build, layers, make_box_batch
from torch import nn

FOLDER, CAPACITIES = Path(sys.argv[1]), [float(word) for word in sys.argv[2:]]


class Step(nn.Module):
    """The mean over images of a loss of all outputs of the head, and the router's losses."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict) -> torch.Tensor:
        outputs = self.model(batch["img"])
        total, items = self.model.loss({**batch, "img": batch["img"].float()}, single(outputs))
        assert list(items)[-2:] == ["guide", "z"]
        return total[-2:].sum() / len(batch["img"]) + sum(x.square().mean() for x in tensors(outputs))


def tensors(outputs) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [x for part in (outputs.values() if isinstance(outputs, dict) else outputs) for x in tensors(part)]


def single(outputs):
    """The outputs in single precision, in which Ultralytics' own loss can be computed."""
    if isinstance(outputs, torch.Tensor):
        return outputs.float()
    if isinstance(outputs, dict):
        return {name: single(part) for name, part in outputs.items()}
    return type(outputs)(single(part) for part in outputs)


def make_model(capacity: float) -> nn.Module:
    torch.manual_seed(1)
    model = build("yolo26n-mod-hybrid.yaml").double().train()
    model.yaml["mod"]["loss"] = {"guide": 0.5, "z": 0.1}
    model.yaml["mod"]["elastic"] = [0.25, 1.0]  # columns at capacity 1 too
    for layer in layers(model):
        nn.init.normal_(layer.router.proj.weight)
        layer.set_capacity(capacity)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def take_step(step: nn.Module, batch: dict, model: nn.Module) -> dict:
    loss = step(batch)
    loss.backward()
    return {
        "loss": loss.detach(),
        "gradients": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        "routes": [None if layer.plan is None else layer.plan.indices for layer in layers(model)],
    }


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, alone, apart = dist.get_rank(), {}, {}
    batch = make_box_batch(4)
    batch["img"] = torch.rand(4, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    mine = batch["batch_idx"].div(2, rounding_mode="floor") == rank
    half = {name: batch[name][mine] for name in ("batch_idx", "cls", "bboxes")}
    half |= {"img": batch["img"][2 * rank : 2 * rank + 2], "batch_idx": half["batch_idx"] - 2 * rank}
    for capacity in CAPACITIES:
        model = make_model(capacity)
        if rank == 0:
            twin = copy.deepcopy(model)
            alone[capacity] = take_step(Step(twin), batch, twin)
        parallel = nn.parallel.DistributedDataParallel(Step(model), find_unused_parameters=True)
        apart[capacity] = take_step(parallel, half, model)
    torch.save(apart, FOLDER / f"rank{rank}.pt")
    if rank == 0:
        torch.save(alone, FOLDER / "alone.pt")
    dist.destroy_process_group()


main()
