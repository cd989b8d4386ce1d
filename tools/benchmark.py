"""Time a routed model, its dense twin and rivals in turn."""

import sys

from mod_vision.cli import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("bench", str(__doc__)))
