"""`mod-vision VERB key=value ...`, in the manner of `yolo`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mod_vision import __version__
from mod_vision.cli.keys import describe, parse, similar
from mod_vision.cli.verbs import VERBS
from mod_vision.env import DEBUG
from mod_vision.errors import one_line
from mod_vision.plugin import autoload as _autoload

USAGE = """usage: mod-vision VERB key=value ...

{verbs}

Training, prediction and tracking are plain Ultralytics: yolo train model=yolo26n-mod.yaml data=mine.yaml
`mod-vision VERB help` describes the keys of a verb; `mod-vision --version` prints the version.
"""

HELP, VERSION = ("help", "-h", "--help"), ("version", "-v", "--version")
YOLO_MODES = ("train", "predict", "track", "benchmark")  # modes of `yolo` that routed models need nothing else for
YOLO_TASKS = ("detect", "segment", "pose", "obb", "classify", "semantic", "depth")
READER_GONE = 141  # exit code where nobody reads the output any more, as a shell has it for other tools
TOLD = (ValueError, OSError, ImportError, SyntaxError, TypeError, RuntimeError)  # their messages say it all


def main(argv: list[str] | None = None) -> int:
    """Run a verb; errors are one line, exit code 1, and `MOD_VISION_DEBUG=1` shows where they come from."""
    words = sys.argv[1:] if argv is None else argv
    return _while_read(partial(_main, words))


def _main(words: list[str]) -> int:
    """Run a verb, or tell of verbs and keys; returns the exit code."""
    if words[:1] and words[0] in HELP and words[1:]:
        words = [words[1], words[0]]  # `help VERB`
    if not words or words[0] in HELP:
        print(usage())
        return 0
    if words[0] in VERSION:
        print(__version__)
        return 0
    verb, rest = _verb(words)
    if verb in YOLO_MODES:
        print(f"error: {verb} is plain Ultralytics: yolo {' '.join([verb, *rest])}", file=sys.stderr)
        return 2
    if verb not in VERBS:
        print(f"error: unknown verb {verb!r}{similar(verb, VERBS)}\n\n{usage()}", file=sys.stderr)
        return 2
    if rest and rest[0] in HELP:
        print(describe(f"mod-vision {verb}", VERBS[verb]))
        return 0
    return _run(f"mod-vision {verb}", VERBS[verb], rest)


def usage() -> str:
    """Return the verbs, a line each."""
    lines = (f"  {verb:<13} {(function.__doc__ or '').splitlines()[0].rstrip('.')}" for verb, function in VERBS.items())
    return USAGE.format(verbs="\n".join(lines))


def _verb(words: list[str]) -> tuple[str, list[str]]:
    """Return the verb and the other words; `mode=` and task words are understood as `yolo` does, the model has a task.

    A task is left out wherever `yolo` takes it: as the first word, as the second, or as `task=`.
    """
    rest = [word for word in words if not word.startswith("task=")]
    rest = [word for i, word in enumerate(rest) if i > 1 or word not in YOLO_TASKS]
    mode = next((word for word in rest if word.startswith("mode=")), rest[0] if rest else "")
    return mode.removeprefix("mode="), [word for word in rest if word != mode]


def _while_read(run: Callable[[], int]) -> int:
    """Run a command, and end it quietly once nobody reads what it prints, as behind `| head`; returns the exit code."""
    told, logging.raiseExceptions = logging.raiseExceptions, False  # a line of a log that nobody reads is no error
    try:
        code = run()
        print(end="", flush=True)
        return code
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        with open(os.devnull, "w") as nowhere:  # Python prints what is left as it ends
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return READER_GONE
    finally:
        logging.raiseExceptions = told


def _nobody_reads() -> bool:
    """Whether what is printed reaches nobody any more: else a pipe that broke is of the verb's own."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def _run(name: str, function: Callable[..., Any], words: list[str]) -> int:
    """Run a function with `key=value` words; returns the exit code, which a function can give itself."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read as torch loads: its profiler warns of what came before
    _autoload.install()  # also where plain `yolo` shall not know the layers
    try:
        return function(**parse(name, function, words)) or 0
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get(DEBUG) == "1" or (isinstance(error, BrokenPipeError) and _nobody_reads()):
            raise
        kind = "" if isinstance(error, TOLD) else f"{type(error).__name__}: "
        print(f"error: {kind}{one_line(error)}", file=sys.stderr)
        return 1


def run_tool(tool: str | Callable[..., Any], description: str) -> int:
    """Run a verb, or a function, for a script in `tools/` or `studies/`; `--help` prints its description and keys."""
    script = Path(sys.argv[0])
    name = f"python -m studies.{script.stem}" if script.parent.name == "studies" else f"python tools/{script.name}"
    function = VERBS[tool] if isinstance(tool, str) else tool
    if any(word in HELP for word in sys.argv[1:]):
        return _while_read(lambda: print(f"{description}\n{describe(name, function)}") or 0)
    return _while_read(partial(_run, name, function, sys.argv[1:]))
