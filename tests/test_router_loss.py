"""The router's losses in a model's loss: columns, weights, gradients, and when there are none."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import build, layers, make_batch, make_box_batch, shipped
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

import mod_vision
from mod_vision.routing.losses import budget_loss, guide_loss, tokens_in_boxes, tokens_in_masks, z_loss
from mod_vision.yolo.run.objects import object_tokens

DETECTORS = ["yolo26n-mod-hybrid.yaml", "yolo12n-mod-attention.yaml", "yolo11n-mod-attention.yaml"]


def weighted(name: str, **weights: float) -> nn.Module:
    """A model in training whose router losses have these weights."""
    model = build(name).train()
    model.yaml["mod"]["loss"] = weights
    return model


def router_gradient(model: nn.Module) -> list[float]:
    return [float(layer.router.proj.weight.grad.abs().max()) for layer in layers(model)]


def mean(terms: list[torch.Tensor]) -> float:
    return torch.stack(terms).mean().item()


def guide_terms(model: nn.Module, batch: dict) -> list[torch.Tensor]:
    images = len(batch["img"])
    return [
        guide_loss(layer.plan.logits, tokens_in_boxes(batch["bboxes"], batch["batch_idx"], images, layer.plan.size))
        for layer in layers(model)
    ]


# ----------------------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize("name", DETECTORS)
def test_losses_of_a_shipped_detector(name):
    model, batch = build(name).train(), make_box_batch()
    total, items = model.loss(batch)
    assert items["guide"].item() == pytest.approx(0.5 * mean(guide_terms(model, batch)))
    assert items["z"].item() == pytest.approx(0.001 * mean([z_loss(la.plan.logits) for la in layers(model)]))
    assert list(items)[-2:] == ["guide", "z"], "no budget by default"
    assert not any(item.requires_grad for item in items.values())
    own = 2 * torch.stack((items["guide"], items["z"]))
    torch.testing.assert_close(total[-2:], own, msg="times the batch, like the other losses")
    total[-2].backward()  # the guide loss alone
    assert min(router_gradient(model)) > 0
    assert model.model[-1].cv2[0][-1].weight.grad.abs().max() == 0


@pytest.mark.parametrize("overlap", [True, False])
def test_guide_loss_in_segmentation(overlap):
    model = build("yolo26n-mod-hybrid-seg.yaml").train()
    model.args.overlap_mask = overlap
    batch = make_batch(3, overlap=overlap)  # the image in the middle is empty
    total, items = model.loss(batch)
    expected = []
    for layer in layers(model):
        targets = tokens_in_masks(batch["masks"], layer.plan.size, 3, batch["batch_idx"], overlap)
        assert torch.equal(object_tokens(batch, layer.plan.size, overlap), targets)
        assert targets.flatten(1).any(dim=1).tolist() == [True, False, True]
        expected.append(guide_loss(layer.plan.logits, targets))
    assert items["guide"].item() == pytest.approx(0.5 * mean(expected))
    total.sum().backward()
    assert min(router_gradient(model)) > 0


def test_each_loss_has_its_weight():
    model, batch = weighted("yolo26n-mod-hybrid.yaml", guide=2.0, budget=3.0, z=0.25), make_box_batch(3)
    mod_vision.set_capacity(model, 0.25)
    total, items = model.loss(batch)
    assert list(items)[-3:] == ["guide", "budget", "z"]
    logits = [layer.plan.logits for layer in layers(model)]
    assert items["guide"].item() == pytest.approx(2 * mean(guide_terms(model, batch)))
    assert items["budget"].item() == pytest.approx(3 * mean([budget_loss(x, 0.25) for x in logits]))
    assert items["z"].item() == pytest.approx(0.25 * mean([z_loss(x) for x in logits]))
    torch.testing.assert_close(total[-3:], 3 * torch.stack(list(items.values())[-3:]))
    for term in total[-3:]:
        model.zero_grad()
        term.backward(retain_graph=True)
        assert min(router_gradient(model)) > 0


@pytest.mark.parametrize("name", ["guide", "budget", "z"])
def test_a_weight_of_zero_switches_a_loss_off(name):
    on = dict.fromkeys(("guide", "budget", "z"), 1.0)
    model = weighted("yolo26n-mod-hybrid.yaml", **on)
    names = list(model.loss(make_box_batch())[1])
    model.yaml["mod"]["loss"][name] = 0
    assert [n for n in names if n != name] == list(model.loss(make_box_batch())[1])
    assert name in names


def test_guide_weight_follows_the_progress_of_the_training():
    model, batch = build("yolo26n-mod-hybrid.yaml").eval(), make_box_batch()
    at = {}
    for progress in (0.0, 0.5, 1.0):
        model.mod_progress = progress
        at[progress] = {name: item.item() for name, item in model.loss(batch)[1].items()}
    assert at[0.5]["guide"] == pytest.approx(0.6 * at[0.0]["guide"])
    assert at[1.0]["guide"] == pytest.approx(0.2 * at[0.0]["guide"])
    assert at[1.0]["z"] == pytest.approx(at[0.0]["z"]), "the others stay"


# ---------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("name", ["guide", "budget", "z"])
def test_each_loss_falls_when_only_the_routers_train(name):
    model, batch = weighted("yolo26n-mod-hybrid.yaml", **{"guide": 0, "z": 0, name: 1.0}).eval(), make_box_batch()
    batch["img"] = tokens_in_boxes(batch["bboxes"], batch["batch_idx"], 2, (64, 64))[:, None].expand(-1, 3, -1, -1)
    mod_vision.set_capacity(model, 0.125)  # about half of the logits are above 0, so there is a gap to close
    model.requires_grad_(False)
    routers = [parameter.requires_grad_() for layer in layers(model) for parameter in layer.router.parameters()]
    optimiser = torch.optim.Adam(routers, lr=0.005)
    losses = []
    for _ in range(24):
        total, items = model.loss(batch)
        optimiser.zero_grad()
        total[-1].backward()
        optimiser.step()
        losses.append(items[name].item())
    assert losses[-1] < 0.9 * losses[0]


def test_losses_without_labels_are_finite():
    model = weighted("yolo26n-mod-hybrid.yaml", guide=0.5, budget=0.1, z=0.001)
    batch = make_box_batch()
    batch |= {"batch_idx": torch.zeros(0), "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4)}
    total, items = model.loss(batch)
    assert all(items[name].isfinite() for name in ("guide", "budget", "z"))
    total.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_training_gradient_is_finite_on_the_smallest_image():
    model = build("yolo26n-mod-hybrid.yaml").train()
    batch = make_batch(size=32)  # the second stage sees one token per image
    total, _ = model.loss(batch)
    total.sum().backward()
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert bad == []


# -------------------------------------------------------------------------------------------------- where it has none


def test_no_losses_where_they_have_no_meaning():
    batch = make_box_batch()
    names = {"guide", "budget", "z"}

    dense = weighted("yolo26n-mod-hybrid.yaml", guide=1, budget=1, z=1)
    mod_vision.set_capacity(dense, 1.0)
    assert not names & set(dense.loss(batch)[1])

    off = weighted("yolo26n-mod-hybrid.yaml", guide=0, budget=0, z=0)
    total, items = off.loss(batch)
    assert not names & set(items)
    assert len(total) == 3
    total.sum().backward()
    assert min(router_gradient(off)) > 0, "the gates alone train the router"

    unlearned = copy.deepcopy(shipped())
    unlearned["mod"]["router"] = "norm"
    unlearned["scale"] = "n"
    model = DetectionModel(unlearned, nc=3, verbose=False).train()
    model.args = get_cfg()
    assert not names & set(model.loss(batch)[1])


@pytest.mark.parametrize("schedule", [{"warmup": 0.5}, {"elastic": [0.25, 1.0]}])
def test_a_scheduled_step_at_capacity_one_keeps_its_columns(schedule):
    """Ultralytics adds the columns of all steps up, so each must have the same ones."""
    model, batch = build("yolo26n-mod-hybrid.yaml").train(), make_box_batch()
    model.yaml["mod"] |= schedule
    total, routed = model.loss(batch)
    for layer in layers(model):
        layer.set_capacity(1.0)
    dense_total, dense = model.loss(batch)
    assert list(dense) == list(routed)
    assert dense_total.shape == total.shape
    assert [dense[name].item() for name in ("guide", "z")] == [0.0, 0.0]
    dense_total.sum().backward()
    assert all(p.grad is None for layer in layers(model) for p in layer.router.parameters())


def test_losses_need_a_forward_of_this_model():
    """Predictions can come from elsewhere, such as a copy; then there is no routing to judge."""
    model, batch = build("yolo26n-mod-hybrid.yaml").train(), make_box_batch()
    predictions = model(batch["img"])
    assert "guide" in model.loss(batch, predictions)[1]
    assert "guide" not in copy.deepcopy(model).loss(batch, predictions)[1]
