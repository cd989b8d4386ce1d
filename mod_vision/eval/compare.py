"""Models side by side on one split, and how sure their differences are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

from mod_vision.eval.accuracy.bootstrap import Difference, difference, draw_resamples, resampled_ap
from mod_vision.eval.accuracy.class_table import percent
from mod_vision.eval.cost.latency import doubts
from mod_vision.eval.evaluate import Evaluation, evaluate_models
from mod_vision.run_settings import ScoreSettings
from mod_vision.text import printable

FEW = 10  # images


class Pair(NamedTuple):
    """The difference in AP of a kind, `box` or `mask`, between two models: the second less the first."""

    first: str
    second: str
    kind: str
    ap: Difference


@dataclass
class Comparison:
    """What `compare` found.

    Attributes:
        evaluations: Figures and cost by model.
        pairs: Differences of every two models.
        resamples: How many the intervals are from.
        seed: Seed of the resamples.
    """

    evaluations: dict[str, Evaluation]
    pairs: list[Pair]
    resamples: int
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain figures, for JSON; AP and differences in [-1, 1]."""
        return {
            "models": {name: found.as_dict() for name, found in self.evaluations.items()},
            "resamples": self.resamples,
            "seed": self.seed,
            "differences": [
                {**pair._asdict(), "ap": {**pair.ap._asdict(), "includes_zero": pair.ap.includes_zero}}
                for pair in self.pairs
            ],
        }

    def table(self) -> str:
        """Return figures and differences as text, in percent."""
        width = max(map(len, self.evaluations)) + 2
        kinds = max((list(found.scores) for found in self.evaluations.values()), key=len)
        head = "".join(f"{f'{kind} AP':>9}{'AP50':>7}{'APs':>7}{'APm':>7}{'APl':>7}" for kind in kinds)
        lines = [f"{'model':<{width}}{head}{'GFLOPs':>9}   latency"]
        for name, found in self.evaluations.items():
            line = f"{printable(name):<{width}}"
            for kind in kinds:
                line += _figures(found, kind)
            lines.append(f"{line}{found.cost.gflops:>9.2f}   {found.cost.latency}")
        if any(found.gflops for found in self.evaluations.values()):
            lines.append(
                "GFLOPs of models with thresholds: mean of all images at their input sizes; others: square input"
            )
        lines += doubts({name: found.cost.latency.spread for name, found in self.evaluations.items()})
        images = len(next(iter(self.evaluations.values())).files)
        lines += [
            f"\ndifference in AP, and 95 % of {self.resamples} resamples of the {images} images, seed {self.seed}"
        ]
        for first, second, kind, ap in self.pairs:
            within = f"includes 0: {'yes' if ap.includes_zero else 'no'}"
            lines.append(f"  {kind:<5}{ap!s:<28}{within:<18}{printable(second)} less {printable(first)}")
        if images < FEW:
            lines.append(f"warning: {images} images are too few for resamples to show how far AP moves")
        return "\n".join(lines)


def compare(
    models: Mapping[str, Any],
    data: str,
    run: ScoreSettings = ScoreSettings(),  # noqa: B008  # frozen
    resamples: int = 1000,
    seed: int = 1,
    **overrides: Any,
) -> Comparison:
    """Score models on one split, and resample its images to see how sure their differences are.

    Every resample holds the same images for all models, so that easy and hard images disturb none of the differences.

    Args:
        models: `YOLO` objects or checkpoints, by name.
        data: Data YAML.
        run: How they are run and scored.
        resamples: How often the images are drawn anew.
        seed: Seed of the draws.
        overrides: As in `evaluate_model`.

    Raises:
        ValueError: If there are less than two models, or no object to score them on.
    """
    if len(models) < 2:
        raise ValueError(f"models={','.join(models)}: give at least two different ones, such as models=a.pt,b.pt.")
    evaluations = evaluate_models(models, data, run, **overrides)
    if not any(found.objects_scored for found in evaluations.values()):
        raise ValueError(f"{data}: the split has no object, so there is no difference to tell.")
    counts = draw_resamples(len(next(iter(evaluations.values())).files), resamples, seed)
    ap = {
        (name, kind): resampled_ap(part.matches, range(len(part.classes)), counts)
        for name, found in evaluations.items()
        for kind, part in found.scores.items()
    }
    pairs = []
    for first, second in combinations(evaluations, 2):
        a, b = evaluations[first].scores, evaluations[second].scores
        for kind in (kind for kind in a if kind in b):
            observed = b[kind].stats["AP"] - a[kind].stats["AP"]
            pairs.append(Pair(first, second, kind, difference(observed, ap[second, kind], ap[first, kind])))
    return Comparison(evaluations, pairs, resamples, seed)


def _figures(found: Evaluation, kind: str) -> str:
    """Return the AP figures of a kind in percent, `-` where there are none."""
    keys = ("AP", "AP50", "APs", "APm", "APl")
    stats = found.scores[kind].stats if kind in found.scores else {}
    return "".join(f"{percent(stats.get(key), 2):>{9 if key == 'AP' else 7}}" for key in keys)
