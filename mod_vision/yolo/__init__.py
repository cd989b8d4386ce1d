"""The bridge to Ultralytics, and the only folder that imports it."""

import ultralytics

from mod_vision.versions import check_version

check_version("ultralytics", ultralytics.__version__)  # before any of its modules is touched

import ultralytics.nn.tasks  # noqa: E402  # registers, before any module of ours is half imported
