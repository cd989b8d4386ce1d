"""Which part of the picture a layer looks at: its zone, and in the frames of a still camera what moved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mod_vision.routing.layer import RoutedLayer
from mod_vision.routing.moving import Moved, MovedSums, moved_sums
from mod_vision.routing.padding import Frame
from mod_vision.routing.zone import cells_in, extent_of, sums_of, whole_extent


class ZonedLayer(RoutedLayer):
    """Base of layers that can leave out parts of the picture."""

    @property
    def zone_sums(self) -> torch.Tensor | None:
        """The zones that are looked at, as `sums_of` gives them: one for all images, or one for each; None is all."""
        sums: torch.Tensor | None = self._buffers.get("zone")
        return sums if sums is None or len(sums) == 1 else self._of_some(sums)

    @property
    def zone_is_one(self) -> bool:
        """Whether all images have the same zone: with one each, a batch must give what its images give alone."""
        zone = self._buffers.get("zone")
        return zone is not None and len(zone) == 1

    def zones_for(self, images: int) -> torch.Tensor | None:
        """Return `zone_sums` for a batch.

        Raises:
            ValueError: If there are zones for another number of images.
        """
        sums = self.zone_sums
        if sums is not None and len(sums) not in (1, images):
            raise ValueError(f"the model has zones for {len(sums)} streams, and the batch has {images} images.")
        return sums

    def _of_some(self, values: torch.Tensor) -> torch.Tensor:
        """Return of values (B, ...) those of the images that are run, see `some_images`."""
        chosen = getattr(self._of_thread, "chosen", None)
        return values if chosen is None else values[chosen]

    def set_zone(self, masks: torch.Tensor | None) -> None:
        """Look at zones alone, (S, GRID, GRID) squares of the picture: one for all images, or one for each."""
        self.register_buffer("zone", None if masks is None else sums_of(masks), persistent=False)
        self.forget_plans()

    @contextmanager
    def some_images(self, chosen: torch.Tensor) -> Iterator[None]:
        """Run some images (B,) of a batch in this thread: each has its own zone."""
        self._of_thread.chosen = chosen
        try:
            yield
        finally:
            self._of_thread.chosen = None

    @property
    def moved(self) -> MovedSums | None:
        """What alone is computed in this thread, None for all; a training computes all."""
        moved: MovedSums | None = getattr(self._of_thread, "moved", None)
        chosen = getattr(self._of_thread, "chosen", None)
        if moved is None or self.training:
            return None
        return moved if chosen is None else moved.of(chosen)

    @contextmanager
    def only_where(self, moved: Moved) -> Iterator[None]:
        """Compute some squares of the pictures alone in this thread."""
        self._of_thread.moved = moved_sums(moved)
        try:
            yield
        finally:
            self._of_thread.moved = None

    def _in_zone(
        self, inside: torch.Tensor | None, frame: Frame | None, x: torch.Tensor, size: tuple[int, int]
    ) -> torch.Tensor | None:
        """Return which cells (B, N) count: those of padding do not, nor those outside of the zone; a training has none.

        Raises:
            ValueError: If there are zones for another number of images.
        """
        sums = None if self.training else self.zones_for(len(x))
        if sums is None:
            return inside
        extent = whole_extent(x) if frame is None else extent_of(frame)
        here = cells_in(sums, size, extent)
        return here if inside is None else here & inside
