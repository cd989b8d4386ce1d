"""The drone images that ship: some of HIT-UAV's, evenly spaced over its clips, with labels and credit."""

import shutil
import sys
from pathlib import Path

from ultralytics.data.utils import img2label_paths

from mod_vision.cli.main import run_tool
from mod_vision.files import write_text
from mod_vision.yolo.data.description import split_images
from mod_vision.yolo.model.trust import check_data
from mod_vision.yolo.run.images import evenly_spaced, some_images

YAML = """# {train} + {val} thermal drone images of HIT-UAV, 640x512, with boxes (credit in CREDITS.md).
# Paths are relative to this file, so it works wherever the package is installed.
train: images/train
val: images/val
names:
{names}
"""
CREDITS = """# Credits
The images and labels in this folder are a part of HIT-UAV: Suo, J., Wang, T., Zhang, X., Chen, H., Zhou, W., Shi, W.:
HIT-UAV: A high-altitude infrared thermal dataset for Unmanned Aerial Vehicle-based object detection. Scientific Data
10, 227 (2023). https://github.com/suojiashun/HIT-UAV-Infrared-Thermal-Dataset

Licence: CC BY 4.0, https://creativecommons.org/licenses/by/4.0/. Changes: images re-encoded as gray JPEG of quality 75,
boxes written as YOLO labels, a part of the images taken.
"""


def drones(data: str, out: str = "assets/hituav", train: int = 100, val: int = 60) -> None:
    """Copy images and labels that hold none of the rarest class, which is too rare to score.

    Args:
        data: Data YAML of HIT-UAV.
        out: Folder to write.
        train: Number of images to train on.
        val: Number of images to validate on.
    """
    described, folder = check_data(data, "train"), Path(out)
    rarest = str(len(described["names"]) - 1)
    for split, count in (("train", train), ("val", val)):
        images = sorted(some_images(split_images(described, split), sys.maxsize))
        labels = {path: Path(img2label_paths([str(path)])[0]) for path in images}
        usable = [
            path for path in images if rarest not in {w.split()[0] for w in labels[path].read_text().splitlines()}
        ]
        for part in ("images", "labels"):
            shutil.rmtree(folder / part / split, ignore_errors=True)
            (folder / part / split).mkdir(parents=True)
        for path in evenly_spaced(usable, count):
            shutil.copyfile(path, folder / "images" / split / path.name)
            shutil.copyfile(labels[path], folder / "labels" / split / labels[path].name)
    names = "\n".join(f"  {i}: {name}" for i, name in described["names"].items())
    write_text(folder / "mod-hituav.yaml", YAML.format(train=train, val=val, names=names))
    write_text(folder / "CREDITS.md", CREDITS)


if __name__ == "__main__":
    sys.exit(run_tool(drones, str(__doc__)))
