"""The zone of a conversion: the part of the picture that alone counts, and what of a data set lies in it."""

from __future__ import annotations

from typing import Any

from ultralytics import YOLO

from mod_vision.yolo.data.zone_filter import ZoneFilter
from mod_vision.yolo.data.zones import zones_of
from mod_vision.yolo.train.fit import labels_of


def zone_filter_of(zone: Any) -> ZoneFilter | None:
    """Return what tells what lies in a zone, None for the whole picture.

    Args:
        zone: One zone, as `set_zone` takes it.

    Raises:
        ValueError: If it is no zone, or one for each of several streams.
        FileNotFoundError: If a file does not exist.
    """
    zones = zones_of(zone)
    if zones is not None and len(zones) != 1:
        raise ValueError(f"convert takes one zone, for all photos of the data set; got zones for {len(zones)} streams.")
    return None if zones is None else ZoneFilter(zones[0])


def count_objects(dense: YOLO, data: str, imgsz: int, zone_filter: ZoneFilter, asked: str) -> None:
    """Say how many labelled objects to choose and to report on lie in the zone; unlabelled images are told of later.

    Args:
        dense: The model.
        data: Data YAML of the parts.
        imgsz: Image size in pixels.
        zone_filter: The zone.
        asked: Data YAML that is asked for, for the error.

    Raises:
        ValueError: If there are objects, and none of them lies in the zone.
    """
    said = []
    for split, what in (("test", "the images kept aside from training"), ("val", "val")):
        labels = labels_of(dense, data, imgsz, split)
        objects, within = (sum(len(label["cls"]) for label in own) for own in (labels, zone_filter.labels(labels)))
        if objects and not within:
            raise ValueError(f"{asked}: none of the {objects} labelled objects of {what} lies in the zone.")
        said.append(f"{within} of {objects} labelled objects of {what}")
    print(f"in the zone are {' and '.join(said)}; no others count", flush=True)
