"""Environment variables of this package. Imports nothing: every `import torch` waits for who needs them."""

AUTOLOAD = "MOD_VISION_AUTOLOAD"  # 0: plain `yolo` does not know the routed layers
TRUST = "MOD_VISION_TRUST"  # 1: files of others may run code
DEBUG = "MOD_VISION_DEBUG"  # 1: errors show where they come from
CLOSED = "MOD_VISION_DATA_CACHES_CLOSED"  # 1: caches of data sets are not read, in processes started meanwhile neither
