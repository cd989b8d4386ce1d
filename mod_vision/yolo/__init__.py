"""The bridge to Ultralytics, and the only folder that imports it."""
