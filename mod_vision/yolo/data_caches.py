"""Caches that Ultralytics keeps in the folder of a data set: pickles, which can come from whoever made the folder."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from mod_vision._autoload import CLOSED
from mod_vision.yolo.data_folder import check_files

WRAPPED = {  # functions by module of Ultralytics
    "ultralytics.data.base": ("check_file_speeds",),
    "ultralytics.data.dataset": ("load_dataset_cache_file", "save_dataset_cache_file"),
    "ultralytics.models.yolo.world.train": ("torch_load",),
    "ultralytics.models.yolo.yoloe.train": ("torch_load",),
    "ultralytics.utils.checks": ("check_requirements",),
}

_lock, _users = Lock(), 0


@contextmanager
def closed_caches() -> Iterator[None]:
    """Have Ultralytics scan the labels of data sets anew: caches in their folders are neither read nor written.

    Written neither, since a link that lies in their place names where to. It counts for the process and those that it
    starts meanwhile; another thread that opens a data set scans it as well.
    """
    global _users
    for name in WRAPPED:
        wrap(importlib.import_module(name))
    with _lock:
        _users += 1
        os.environ[CLOSED] = "1"
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                del os.environ[CLOSED]


def wrap(module: Any) -> None:
    """Wrap what a module of Ultralytics reads a data set with, once; while caches are open, it is as it was.

    Raises:
        AttributeError: If the module lacks it, in another version of Ultralytics.
    """
    for name in WRAPPED[module.__name__]:
        opened = getattr(module, name)
        if not hasattr(opened, "closed"):
            setattr(module, name, _unless_closed(opened, CLOSED_FORMS[name]))


def _unless_closed(opened: Callable[..., Any], closed: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is another one, which gets it as its first argument, while caches are closed."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return closed(opened, *args, **kwargs) if os.environ.get(CLOSED) == "1" else opened(*args, **kwargs)

    call.closed = closed
    return call


def _no_cache(_: Any, path: Any) -> dict[str, Any]:
    """Say that there is no cache, after which Ultralytics scans.

    Raises:
        FileNotFoundError: Always.
    """
    raise FileNotFoundError(f"the cache {path} is not read")


def _complete(_: Any, prefix: str, path: Any, x: dict[str, Any], version: str) -> None:
    """Complete a cache as Ultralytics does when it writes it."""
    x["version"] = version


def _check_files(_: Any, files: list[str], prefix: str = "") -> None:
    """Check that images are files instead of how fast they can be read."""
    check_files(files)


def _install_no_decoder(opened: Callable[..., Any], requirements: Any = (), *args: Any, **kwargs: Any) -> Any:
    """Install what is asked for, but not the decoder of HEIF that Ultralytics wants for each damaged image."""
    return opened(requirements, *args, **(kwargs | {"install": False} if requirements == "pi-heif" else kwargs))


def _load_tensors(load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Load a file that can hold tensors, text and numbers only."""
    return load(*args, **{**kwargs, "weights_only": True})


CLOSED_FORMS: dict[str, Callable[..., Any]] = {
    "load_dataset_cache_file": _no_cache,
    "save_dataset_cache_file": _complete,
    "torch_load": _load_tensors,  # of embeddings of class names
    "check_file_speeds": _check_files,  # the first that has the list of images, and reads some as a whole
    "check_requirements": _install_no_decoder,
}
