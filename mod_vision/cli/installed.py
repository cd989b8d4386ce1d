"""`mod-vision check`: is everything in place?"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, entry_points, version

from mod_vision.env import AUTOLOAD

CORE = ("ultralytics", "torch", "torchvision", "timm", "opencv-python", "pycocotools")
EXPORT = ("onnx", "onnxruntime", "onnxslim")


def report() -> str:
    """Return versions, what is registered, what is missing and what to do, one item a line."""
    import torch
    from ultralytics.nn import tasks

    from mod_vision import __version__
    from mod_vision.resources import PHOTOS, find_shipped, resource_dir
    from mod_vision.versions import SUPPORTED
    from mod_vision.yolo.blocks import KINDS

    lines = [f"mod-vision    {__version__}, Python {platform.python_version()}, {platform.machine()}"]
    for name in CORE:
        note = f" (supported: {SUPPORTED[name]})" if name in SUPPORTED else ""
        lines.append(f"{name:<14}{_version(name) or 'MISSING: pip install ' + name}{note}")
    absent = [name for name in EXPORT if _version(name) is None]
    found = ", ".join(f"{name} {_version(name)}" for name in EXPORT if name not in absent)
    lines.append(f"export        {found or 'none'}" + (f"; for ONNX: pip install {' '.join(absent)}" if absent else ""))
    gpus = torch.cuda.device_count()
    lines.append(f"device        {torch.cuda.get_device_name(0) if gpus else 'CPU'}, {torch.get_num_threads()} threads")
    if getattr(tasks, "mod_vision_registered", False):
        lines.append(f"layers        {', '.join(KINDS)} registered with Ultralytics")
    else:
        lines.append("layers        NOT registered: see the message above")
    lines.append(f"autoload      {_autoload_state()}")
    models = sorted(path.name for path in (resource_dir("cfg") / "models").glob("*.yaml"))
    lines.append(f"models        {', '.join(models)}")
    lines.append(f"photos        {find_shipped(PHOTOS) or 'MISSING: reinstall mod-vision'}")
    return "\n".join(lines)


def _version(name: str) -> str | None:
    """Return a package's version, None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _autoload_state() -> str:
    """Say whether plain `yolo` will find the layers."""
    if os.environ.get(AUTOLOAD, "1") == "0":
        return "off by MOD_VISION_AUTOLOAD=0; plain `yolo` does not know the routed layers"
    if os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1") != "1":
        return "off by TORCH_DEVICE_BACKEND_AUTOLOAD; `import mod_vision` before building a model"
    if not any(point.name == "mod_vision" for point in entry_points(group="torch.backends")):
        return "entry point missing: pip install mod-vision (a bare checkout has none)"
    return "on, plain `yolo` finds the routed layers"
