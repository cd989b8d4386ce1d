"""Draw which patches the router sends through the heavy blocks."""

import sys

from mod_vision.cli.main import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("heatmap", str(__doc__)))
