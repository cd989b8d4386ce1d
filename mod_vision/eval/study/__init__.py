"""A study: a routed model against its dense twin, its isoFLOP twin and random routing, under one schedule."""
