"""Flow maps: the probability flow between any two times in one call, exact or learned, and their sampler."""

from sde_lib.flow_map.base import (
    FlowMap,
    TrainableFlowMap,
    check_flow_map,
    flow_time,
    jump,
    straight_velocity,
    time_of_flow_time,
)
from sde_lib.flow_map.exact import ExactFlowMap
from sde_lib.flow_map.losses import (
    FlowMapLosses,
    JumpLoss,
    consistency_loss,
    eulerian,
    flow_map_loss,
    lagrangian,
    semigroup,
)
from sde_lib.flow_map.network import NetworkFlowMap
from sde_lib.flow_map.sampler import FlowMapSampler

__all__ = [
    "ExactFlowMap",
    "FlowMap",
    "FlowMapLosses",
    "FlowMapSampler",
    "JumpLoss",
    "NetworkFlowMap",
    "TrainableFlowMap",
    "check_flow_map",
    "consistency_loss",
    "eulerian",
    "flow_map_loss",
    "flow_time",
    "jump",
    "lagrangian",
    "semigroup",
    "straight_velocity",
    "time_of_flow_time",
]
