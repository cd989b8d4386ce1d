"""Tell Ultralytics about the routed layers in any process that imports it, at no cost to those that do not.

`import torch` loads the entry points of the group `torch.backends`; ours installs an import hook that waits for
`ultralytics.nn.tasks`. So `yolo` in a fresh shell, data-parallel workers and scripts that only unpickle a checkpoint
all find the layers. With `MOD_VISION_AUTOLOAD=0` nothing is hooked; `mod_vision.yolo.register.register()` still works.
"""

from __future__ import annotations

import importlib.util
import sys

TYPE_CHECKING = False  # not from typing: every `import torch` waits for this module
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

TASKS = "ultralytics.nn.tasks"


class _Loader:
    """Run the real loader, then register."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _register()

    def __getattr__(self, name: str) -> Any:  # resource readers, source lookup and the like
        return getattr(self.loader, name)


class _Finder:
    """Wait for the one module in which Ultralytics looks layers up."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TASKS or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
        return spec


def _register() -> None:
    """Register, and keep Ultralytics usable for dense models if that fails."""
    try:
        from mod_vision.yolo.register import register

        register()
    except Exception as error:
        print(f"mod_vision: routed layers are not available: {error}", file=sys.stderr)


def install() -> None:
    """Register now if Ultralytics is loaded, else when it will be. Idempotent."""
    if TASKS in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def autoload() -> None:
    """Entry point of the group `torch.backends`: importing the package, which loading it does, is all it takes."""
