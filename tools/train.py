"""Train a routed model from a checkout: `yolo train` with the same keys."""

import sys

import mod_vision  # noqa: F401  registers the routed layers

if __name__ == "__main__":
    if len(sys.argv) == 1 or any(word in ("-h", "--help") for word in sys.argv[1:]):
        print(f"{__doc__}\nusage: python tools/train.py model=yolo26n-mod.yaml data=mine.yaml epochs=100 ...")
        sys.exit(0)
    sys.argv.insert(1, "train")
    from ultralytics.cfg import entrypoint

    entrypoint()
