"""Fitting the router of windows: it learns from the labels which cells hold an object; the network stays as it is."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from ultralytics.utils import LOGGER

from mod_vision.files import write_bytes
from mod_vision.routing.shrink import shrunk
from mod_vision.routing.window_routers import LookRouter, told_apart
from mod_vision.yolo.model.windows import head_of, run_rows
from mod_vision.yolo.run.log import Steps
from mod_vision.yolo.run.objects import upright_boxes
from mod_vision.yolo.train.random_parts import augmented, random_part
from mod_vision.yolo.train.windows_loss import windows_loss

STEPS, WINDOWS_BATCH = 3000, 4
RATE, ROWS_RATE, DECAY = 3e-3, 3e-4, 0.02  # ROWS_RATE: of rows that have learnt to see already
WARMUP = 30  # steps
MOMENTUM = 0.1  # of batch statistics


def fit_windows(
    net: Any,
    batches: Iterator[dict[str, Any]],
    steps: int = STEPS,
    tune_rows: bool = True,
    resume: Path | None = None,
) -> float:
    """Train the router of a model that runs on windows; a router without parameters needs no fit.

    Args:
        net: Torch model of Ultralytics; all but its router is as before afterwards.
        batches: Labelled batches, as many as are asked for, with images on the model's device, uint8 or in [0, 1].
        steps: Batches to train on.
        tune_rows: Whether the rows that `look` copied are trained too, or its head alone.
        resume: File in which the state is kept, and from which a training that was stopped goes on.

    Returns:
        Mean loss of the last tenth of the steps.
    """
    head = head_of(net)
    assert head is not None
    router, training = head.entry.router, net.training
    if not router.learned:
        return float("nan")
    net.eval()
    momenta = _train_mode(router, tune_rows)
    groups = _parameters(router, tune_rows)
    optimiser = torch.optim.AdamW(groups, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: _rate(i, steps))
    parts = {"router": router, "optimiser": optimiser, "schedule": schedule}
    try:
        losses = _steps(net, head, batches, parts, steps, resume)
    finally:
        optimiser.zero_grad()
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        net.train(training)
    return float(np.mean(losses[-max(1, steps // 10) :]))


def _steps(
    net: Any, head: Any, batches: Iterator[dict[str, Any]], parts: dict[str, Any], steps: int, resume: Path | None
) -> list[float]:
    """Train for some steps and return their losses.

    Args:
        net: Torch model.
        head: Its head.
        batches: Labelled batches.
        parts: Router, optimiser and schedule.
        steps: Number of steps.
        resume: As in `fit_windows`.
    """
    router, optimiser, schedule = parts.values()
    every, losses = max(1, steps // 10), _resumed(parts, resume)
    progress = Steps("router of windows", steps, len(losses))
    for step in range(len(losses), steps):
        batch = next(batches)
        batch = augmented(random_part({**batch, "bboxes": upright_boxes(batch)}, head.entry.cell))
        images = batch["img"].contiguous(memory_format=torch.channels_last)  # a fifth faster on CPUs
        size = (images.shape[2] // head.entry.cell, images.shape[3] // head.entry.cell)
        said = router(_seen(net, head, images, size), size).flatten(2)
        loss = windows_loss(*told_apart(said), batch, size, head)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        router.steps += 1
        losses.append(float(loss.detach()))
        progress.tell(float(np.mean(losses[-every:])))
        if resume is not None and ((step + 1) % every == 0 or step + 1 == steps):
            _keep(parts, losses, resume)
    return losses


def _keep(parts: dict[str, Any], losses: list[float], file: Path) -> None:
    """Write the state of a training."""
    state = io.BytesIO()
    torch.save({"losses": losses, **{name: part.state_dict() for name, part in parts.items()}}, state)
    write_bytes(file, state.getvalue())


def _resumed(parts: dict[str, Any], file: Path | None) -> list[float]:
    """Take up the state of a training, and return the losses of the steps that are done."""
    if file is None or not file.is_file():
        return []
    state = torch.load(file, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    losses: list[float] = state["losses"]
    LOGGER.info(f"router of windows: going on after step {len(losses)}")
    return losses


def _rate(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: a short rise, then half a cosine."""
    return min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _train_mode(router: nn.Module, tune_rows: bool) -> dict[nn.BatchNorm2d, float | None]:
    """Put the router into training mode, but for rows that stay as they are; return the momenta that norms had.

    Ultralytics' momentum is for trainings of hours.
    """
    router.train()
    if isinstance(router, LookRouter) and not tune_rows:
        router.rows.eval()
    momenta = {norm: norm.momentum for norm in router.modules() if isinstance(norm, nn.BatchNorm2d)}
    for norm in momenta:
        norm.momentum = MOMENTUM
    return momenta


def _parameters(router: nn.Module, tune_rows: bool) -> list[dict[str, Any]]:
    """Return the parameters that are trained, with their rates."""
    rows = list(router.rows.parameters()) if isinstance(router, LookRouter) else []
    known = {id(p) for p in rows}
    groups = [{"params": [p for p in router.parameters() if id(p) not in known], "lr": RATE}]
    if rows and tune_rows:
        groups.append({"params": rows, "lr": ROWS_RATE})
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_()  # loaded ones are frozen
    return groups


def _seen(net: Any, head: Any, images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return what the router reads of images."""
    x, reads = images, head.entry.router.reads
    if reads == "map":
        with torch.no_grad():
            x = run_rows(net.model[: head.entry.i], images)[-1]
    return head.entry.seen(x, size, shrunk(images, 2) if reads == "image" else None)
