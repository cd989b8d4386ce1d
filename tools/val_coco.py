"""Score a model with COCO metrics, beside its cost and its object recall of the router."""

import sys

from mod_vision.cli.main import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("val", str(__doc__)))
