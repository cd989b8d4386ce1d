"""Tell Ultralytics about the routed layers in any process that imports it, at no cost to those that do not.

`import torch` loads the entry points of the group `torch.backends`; ours installs an import hook that waits for
`ultralytics.nn.tasks`. So `yolo` in a fresh shell, data-parallel workers and scripts that only unpickle a checkpoint
all find the layers. With `MOD_VISION_AUTOLOAD=0` nothing is hooked; `register()` of this package still works.

In the workers of a training that keeps the caches of data sets closed, it waits for what would read them as well.
"""

from __future__ import annotations

import importlib.util
import os
import sys

from mod_vision.env import CLOSED

TYPE_CHECKING = False  # not from typing: every `import torch` waits for this module
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

TASKS = "ultralytics.nn.tasks"
CACHING = (  # what reads a data set, see yolo/data/caches.py
    "ultralytics.data.base",
    "ultralytics.data.dataset",
    "ultralytics.models.yolo.world.train",
    "ultralytics.models.yolo.yoloe.train",
)


class _Loader:
    """Run the real loader, then something of ours."""

    def __init__(self, loader: Any, then: Callable[[ModuleType], None]) -> None:
        self.loader, self.then = loader, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.then(module)

    def __getattr__(self, name: str) -> Any:  # resource readers, source lookup and the like
        return getattr(self.loader, name)


class _Finder:
    """Wait for a module of Ultralytics, such as the one in which it looks layers up."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self.name, self.then = name, then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.then)  # type: ignore[assignment]
        return spec


def _register(_: ModuleType | None = None) -> None:
    """Register, and keep Ultralytics usable for dense models if that fails."""
    try:
        from mod_vision.plugin.register import register

        register()
    except Exception as error:
        print(f"mod_vision: routed layers are not available: {error}", file=sys.stderr)


def _close_caches(module: ModuleType) -> None:
    """Keep a module from reading the caches of data sets."""
    from mod_vision.yolo.data.caches import wrap

    wrap(module)


def install() -> None:
    """Register now if Ultralytics is loaded, else when it will be. Idempotent."""
    if TASKS in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(TASKS, _register))
        if os.environ.get(CLOSED) == "1":
            sys.meta_path[:0] = [_Finder(name, _close_caches) for name in CACHING]


def autoload() -> None:
    """Entry point of the group `torch.backends`: importing the package, which loading it does, is all it takes."""
