"""Routed windows in Ultralytics' models: forms of its own rows and heads, whose parameters keep their names.

The entry is the row at which the network narrows from the whole image to windows; it holds the router. Later rows that
read a map from before the entry take the same windows of it. The head puts back what it says of each window: at
inference as a list of the positions that the windows own, in a training as the full maps that the losses want.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from ultralytics.nn.modules import block, conv, head

from mod_vision.routing.window_layer import WindowedLayer
from mod_vision.routing.window_routers import SURE
from mod_vision.routing.windows import WindowPlan
from mod_vision.yolo.blocks.base import sharing

NOTHING = -20.0  # class logit where nothing is predicted
EXTRA = {"mask_coefficient": "nm", "angle": "ne", "kpts": "nk"}  # what tasks predict besides, and its channels
PROTO_STRIDE = 4  # px between positions of the prototypes of masks


class Placed:
    """Where raw predictions of windows belong; no tuple, or what walks through outputs would take it apart.

    Args:
        plan: The windows.
        strides: Px between the positions of each map of the head.
    """

    def __init__(self, plan: WindowPlan, strides: tuple[int, ...]) -> None:
        self.plan, self.strides = plan, strides


class Windowed:
    """Mixin of what knows the entry: it reads, or makes, what belongs to windows."""

    _entry: tuple[Any, ...] = ()  # in a tuple, or its parameters would be this module's too

    @property
    def entry(self) -> WindowedLayer:
        """The layer that places the windows."""
        return self._entry[0] if self._entry else self

    @property
    def windows(self) -> WindowPlan | None:
        """The windows of this forward, None if it runs whole images."""
        plan = self.entry.plan
        return None if plan is None or plan.whole is not None else plan


class _Reads(Windowed):
    """A row that takes windows of some of what it reads, those from before the entry."""

    outside: tuple[bool, ...] = (True,)

    def forward(self, x: Any) -> Any:
        """Return what the row makes of the windows."""
        return super().forward(self.narrowed(x))

    def forward_fuse(self, x: Any) -> Any:
        """Return the same, of a row that is fused."""
        return super().forward_fuse(self.narrowed(x))

    def forward_split(self, x: Any) -> Any:
        """Return the same, of a row that exports run in another form."""
        return super().forward_split(self.narrowed(x))

    def narrowed(self, x: Any) -> Any:
        """Return the windows of maps (B, C, H, W), or of those in a list that are of the whole image."""
        plan = self.windows
        if plan is None:
            return x
        if isinstance(x, torch.Tensor):
            return plan.take(x)
        return [plan.take(m) if outside else m for m, outside in zip(x, self.outside, strict=True)]


class _Entry(_Reads, WindowedLayer):
    """The row at which windows are taken; routers that need this row's map run here, the others before the network."""

    def narrowed(self, x: Any) -> Any:
        """Place the windows, if that is not done, and return them."""
        if not self.dense and self.router.reads == "map":
            self.route_windows(x, reduction=self.reduction)
        return super().narrowed(x)


class WindowedHead(Windowed):
    """Mixin of heads: each position of the full maps is predicted by the window that owns it, or not at all.

    Attributes:
        coarse: Share of the image's side at which it is looked at as a whole for large objects; 0 if it is not.
        objectness: Exponent of the router's probability that a cell holds an object of a class, in the odds of one
            that is found there; 0 leaves it out. What a coarse pass finds, and an image that is run as a whole, have
            no such doubts.
        doubt: What the router doubts of an object on average, minus the logarithm of its probability: what is found in
            a cell of this doubt keeps its score, and scores more in a cell of less.
    """

    coarse: float = 0.0
    objectness: float = 0.0
    doubt: float = 0.0

    def forward(self, x: list[torch.Tensor]) -> Any:
        """Return what Ultralytics' head does of the maps of the windows, in its form, for whole images."""
        plan = self.windows
        if plan is not None and not len(x[0]):
            return self.no_windows(x[0])
        return super().forward(x)

    def forward_head(self, x: list[torch.Tensor], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the raw predictions of maps (windows, C, h, w): in a training, on the full maps."""
        raw = super().forward_head(x, *args, **kwargs)
        plan = self.windows
        if plan is None or not raw:
            return raw
        strides = tuple(plan.window[0] * plan.cell // m.shape[2] for m in x)
        raw = {**raw, "feats": full_maps(x, plan, strides), "windows": Placed(plan, strides)}
        return put_back(raw) if self.training else raw

    def no_windows(self, x: torch.Tensor) -> Any:
        """Return what images give in which no window is worth it, in the precision of `x`."""
        plan = self.windows
        assert plan is not None
        strides = tuple(int(s) for s in self.stride)
        sides = [(plan.window[0] * plan.cell // s, plan.window[1] * plan.cell // s) for s in strides]
        places = sum(h * w for h, w in sides)
        maps = [x.new_zeros(0, 1, *side) for side in sides]
        raw: dict[str, Any] = {key: x.new_zeros(0, n, places) for key, n in self._channels().items()}
        raw |= {"feats": full_maps(maps, plan, strides), "windows": Placed(plan, strides)}
        extra = sum(raw[key].shape[1] for key in raw if key in EXTRA)
        images, end2end = len(plan.logits), self.end2end
        y = x.new_zeros(images, 0, 6 + extra) if end2end else x.new_zeros(images, 4 + self.nc + extra, 0)
        if isinstance(self, head.Segment):
            proto = x.new_zeros(images, self.nm, *(n * plan.cell // PROTO_STRIDE for n in plan.size))
            return (y, proto) if self.export else ((y, proto), raw | {"proto": proto})
        return y if self.export else (y, raw)

    def _channels(self) -> dict[str, int]:
        """Return the channels of each raw prediction."""
        own: Any = self
        found = {key: getattr(own, name) for key, name in EXTRA.items() if hasattr(own, name)}
        return {"boxes": 4 * own.reg_max, "scores": own.nc, **found}

    def _inference(self, x: dict[str, Any]) -> torch.Tensor:
        """Return decoded predictions (B, 4 + nc + extra, positions of all windows); those not owned score nothing.

        The anchors of whole images are kept for the next coarse pass: making them anew, the host would wait.
        """
        if "windows" not in x:
            return super()._inference(x)
        own: Any = self
        whole = own.anchors, own.strides, own.shape
        try:
            return super()._inference(listed(x, own.objectness if self.entry.router.guesses else 0.0, own.doubt))
        finally:
            own.anchors, own.strides, own.shape = whole

    def _get_decode_boxes(self, x: dict[str, Any]) -> torch.Tensor:
        """Return boxes in px of the image, from the place of each position on the full maps."""
        if "centres" not in x:
            return super()._get_decode_boxes(x)
        own: Any = self
        centres, own.strides = x["centres"], x["steps"]
        own.anchors = centres[:, None] if own.export else centres.transpose(0, 1)[:, :, None]  # for keypoints
        return own.decode_bboxes(own.dfl(x["boxes"]), centres, x.get("angle")) * own.strides


def full_maps(x: Sequence[torch.Tensor], plan: WindowPlan, strides: Sequence[int]) -> list[torch.Tensor]:
    """Return stand-ins of the full maps, of which losses and decoding read only the shape; they take no memory."""
    full = [(plan.size[0] * plan.cell // s, plan.size[1] * plan.cell // s) for s in strides]
    return [m.new_zeros(()).expand(len(plan.logits), m.shape[1], *size) for m, size in zip(x, full, strict=True)]


def predictions(raw: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return those of the raw predictions that have a value for each position."""
    return {key: raw[key] for key in raw if key not in ("feats", "proto", "windows")}


def put_back(raw: dict[str, Any]) -> dict[str, Any]:
    """Return raw predictions of windows (windows, C, A) on the full maps (B, C, positions), as a loss wants them."""
    plan, strides = raw["windows"].plan, raw["windows"].strides
    own = {key: plan.put(v, strides, NOTHING if key == "scores" else 0.0) for key, v in predictions(raw).items()}
    return {key: value for key, value in {**raw, **own}.items() if key != "windows"}


def on_full_maps(preds: Any) -> Any:
    """Return the output of a model with the raw predictions of windows in it put back, as a loss wants them."""
    if isinstance(preds, dict):
        if isinstance(preds.get("windows"), Placed):
            return put_back(preds)
        return {key: on_full_maps(value) for key, value in preds.items()}
    return type(preds)(on_full_maps(p) for p in preds) if type(preds) in (tuple, list) else preds


def listed(raw: dict[str, Any], objectness: float = 0.0, doubt: float = 0.0) -> dict[str, Any]:
    """Return raw predictions of windows (windows, C, A) as a list for each image (B, C, k * A), with their places.

    Args:
        raw: The predictions.
        objectness: As in `WindowedHead`.
        doubt: The same.

    Returns:
        The predictions; `centres` (B, 2, k * A), x and y in positions of their map; `steps` (1, k * A), its px.
    """
    plan, strides = raw["windows"].plan, raw["windows"].strides
    own = {key: plan.spread(v).transpose(1, 2).flatten(2) for key, v in predictions(raw).items()}
    if objectness:  # by softplus: the logarithm of a sigmoid is endless in half precision
        doubts, cells = F.softplus(-plan.guesses), plan.cells_of(strides).flatten(1)
        if doubt:  # where something moved, no router was asked
            doubts = torch.where(plan.guesses == SURE, doubts, doubts - doubt)
        own["scores"] = own["scores"] - objectness * doubts.gather(
            2, cells[:, None].expand(-1, doubts.shape[1], -1)
        ).to(own["scores"])
    own["scores"] = own["scores"].masked_fill(~plan.owned(strides).flatten(1)[:, None], NOTHING)
    dtype = own["boxes"].dtype
    of_window = plan.window[0] * plan.window[1]
    steps = [own["boxes"].new_full((of_window * (plan.cell // s) ** 2,), float(s)) for s in strides]
    places = {"centres": plan.centres(strides).to(dtype), "steps": torch.cat(steps).repeat(plan.width)[None]}
    return {**raw, **own, **places}


class _Proto(Windowed):
    """Prototypes of the windows on the map of the whole image."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what Ultralytics' module does, put back."""
        out, plan = super().forward(*args, **kwargs), self.windows
        if plan is None:
            return out
        return tuple(plan.put_map(p) for p in out) if isinstance(out, tuple) else plan.put_map(out)


HEADS = (head.Detect, head.Segment, head.Segment26, head.Pose, head.Pose26, head.OBB, head.OBB26, head.v10Detect)
PROTOS = (block.Proto, block.Proto26)
ROWS = tuple(
    kind
    for module in (conv, block)
    for name in module.__all__
    if isinstance(kind := getattr(module, name), type) and issubclass(kind, nn.Module) and kind not in PROTOS
)


def _forms(prefix: str, mixin: type, kinds: Sequence[type]) -> dict[type, type]:
    """Make the windowed form of each class, and a name of this module of it, by which pickle finds it."""
    forms = {}
    for kind in kinds:
        name = f"{prefix}{kind.__name__}"
        forms[kind] = globals()[name] = type(name, (mixin, kind), {"__module__": __name__, "__doc__": mixin.__doc__})
    return forms


ENTRIES = _forms("Entry", _Entry, ROWS)
READERS = _forms("Windowed", _Reads, ROWS)
WINDOWED_HEADS = _forms("Windowed", WindowedHead, HEADS)
WINDOWED_PROTOS = _forms("Windowed", _Proto, PROTOS)
CLASSES = tuple(kind for forms in (ENTRIES, READERS, WINDOWED_HEADS, WINDOWED_PROTOS) for kind in forms.values())


def form_of(module: nn.Module, forms: Mapping[type, type], entry: nn.Module | None = None) -> Any:
    """Return the windowed form of a module, which shares its parameters.

    Args:
        module: The dense module.
        forms: Where to look for the form, by class.
        entry: The entry, None for the entry itself.

    Raises:
        KeyError: If there is no such form.
    """
    new = sharing(module, forms[type(module)])
    new._entry = () if entry is None else (entry,)
    return new
