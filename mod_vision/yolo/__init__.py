"""The bridge to Ultralytics, and the only folder that imports it."""

import ultralytics

from mod_vision.versions import check_version

check_version("ultralytics", ultralytics.__version__)  # before any of its modules is touched
