"""`mod-vision VERB key=value ...`, in the manner of `yolo`."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mod_vision.commands import VERBS
from mod_vision.errors import one_line
from mod_vision.keys import parse

USAGE = """usage: mod-vision VERB key=value ...

  demo          train, evaluate, draw and export a routed segmenter on embedded photos
  check         versions, what is registered, what is missing and what to do
  val           COCO metrics, GFLOPs, latency and routing truth            model= data= [capacity=]
  compare       models side by side, and how sure their differences are   models= data=
  heatmap       pictures and videos of what the router skips               source= [model=]
  report        one HTML page: routes, predictions, accuracy and cost      model= data=
  app           a local page to drop pictures and videos on                [model=]
  convert       a trained dense model into one with routed attention       model= data=
  fit           routers and ways around for a model trained dense          model= data=
  threshold     let compute follow the image, within a mean budget         model= data=
  export        to ONNX, OpenVINO, ..., and check outputs and routes      model= [format=]
  bench         speed against the dense twin                               model=
  tune          which capacity, router and stages pay: AP against latency  model= data=
  predict-many  folders, lists and object stores on many workers           model= source=

Training and prediction are plain Ultralytics: yolo train model=yolo26n-mod.yaml data=mine.yaml
`mod-vision VERB help` lists the keys of a verb.
"""

TOLD = (ValueError, OSError, ImportError, SyntaxError, TypeError, RuntimeError)  # their messages say it all


def main(argv: list[str] | None = None) -> int:
    """Run a verb; errors are one line, exit code 1, and `MOD_VISION_DEBUG=1` shows where they come from."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("help", "-h", "--help"):
        print(USAGE)
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        print(f"error: unknown verb {verb!r}\n\n{USAGE}", file=sys.stderr)
        return 2
    if rest and rest[0] in ("help", "-h", "--help"):
        print(f"mod-vision {verb}: {VERBS[verb].__doc__}\nkeys: {inspect.signature(VERBS[verb])}")
        return 0
    return _run(f"mod-vision {verb}", VERBS[verb], rest)


def _run(name: str, function: Callable[..., Any], words: list[str]) -> int:
    """Run a function with `key=value` words; returns the exit code, which a function can give itself."""
    try:
        return function(**parse(name, function, words)) or 0
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("MOD_VISION_DEBUG") == "1":
            raise
        kind = "" if isinstance(error, TOLD) else f"{type(error).__name__}: "
        print(f"error: {kind}{one_line(error)}", file=sys.stderr)
        return 1


def run_tool(tool: str | Callable[..., Any], description: str) -> int:
    """Run a verb, or a function, for a script in `tools/`; `--help` prints its description and keys."""
    name = f"python tools/{Path(sys.argv[0]).name}"
    function = VERBS[tool] if isinstance(tool, str) else tool
    if any(word in ("-h", "--help") for word in sys.argv[1:]):
        print(f"{description}\nusage: {name} key=value ...\nkeys: {inspect.signature(function)}")
        return 0
    return _run(name, function, sys.argv[1:])
