"""Which images to look at: where compute is input-adaptive, those that cost most and least, else where objects go."""

from __future__ import annotations

from statistics import mean
from typing import NamedTuple

from mod_vision.eval.evaluate import Evaluation

ENDS = 3  # images shown from each end


class Ranked(NamedTuple):
    """An image of the split.

    Attributes:
        file: File name.
        skipped: Skipped share of what is ranked, in [0, 1].
        objects: Object tokens of the image in all stages.
    """

    file: str
    skipped: float
    objects: int


class ImageRanking(NamedTuple):
    """Both ends of the order of images.

    Attributes:
        by_cost: True if images differ in cost, and are ranked by the tokens that they skip; else by object tokens.
        most_skipped: Images that skip most, in descending order.
        least_skipped: Images that skip least, in ascending order.
    """

    by_cost: bool
    most_skipped: list[Ranked]
    least_skipped: list[Ranked]

    @property
    def images(self) -> list[Ranked]:
        """Those of both ends."""
        return [*self.most_skipped, *self.least_skipped]


def rank_images(evaluation: Evaluation, by_cost: bool) -> ImageRanking:
    """Order the images of a scored split by what they skip.

    Args:
        evaluation: Scores at one capacity, below 1.
        by_cost: Rank by the share of all tokens that is skipped, the mean over stages. Otherwise by the share of object
            tokens, and images without an object are left out.
    """
    images = []
    for i, file in enumerate(evaluation.files):
        routed, objects = (sum(counts[i][part] for counts in evaluation.objects.values()) for part in (0, 1))
        if by_cost:
            images.append(Ranked(file, 1 - mean(shares[i] for shares in evaluation.shares.values()), objects))
        elif objects:
            images.append(Ranked(file, 1 - routed / objects, objects))
    images.sort(key=lambda image: -image.skipped)
    most_skipped = images[:ENDS]
    return ImageRanking(by_cost, most_skipped, images[len(most_skipped) :][: -ENDS - 1 : -1])
