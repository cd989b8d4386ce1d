"""Mixture-of-Depths routing in plain torch: which tokens pass a heavy block, and how they get there and back."""

import torch

from mod_vision.routing.capacity import capacity_per_depth, check_capacity, num_routed
from mod_vision.routing.gather import gather_tokens, scatter_tokens, tokens_to_map
from mod_vision.routing.layer import RoutedLayer, routed_layers
from mod_vision.routing.placing import plan_windows
from mod_vision.routing.plan import RoutingPlan, make_plan
from mod_vision.routing.routed import Routed
from mod_vision.routing.routers import ROUTERS, build_router
from mod_vision.routing.window_layer import WindowedLayer
from mod_vision.routing.window_routers import WINDOW_ROUTERS
from mod_vision.routing.windows import WindowPlan
from mod_vision.versions import check_version

__all__ = (
    "ROUTERS",
    "WINDOW_ROUTERS",
    "Routed",
    "RoutedLayer",
    "RoutingPlan",
    "WindowPlan",
    "WindowedLayer",
    "build_router",
    "capacity_per_depth",
    "check_capacity",
    "gather_tokens",
    "make_plan",
    "num_routed",
    "plan_windows",
    "routed_layers",
    "scatter_tokens",
    "tokens_to_map",
)

check_version("torch", torch.__version__)  # here, because whatever routes imports this package
