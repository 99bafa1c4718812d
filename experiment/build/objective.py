"""The objective of training: a weighting and a time distribution, and the parts of both that are learned.

A flow map's has a loss of its jumps beside that of its diagonal, the score, and may have a teacher.

The learned parts, `LossSecondMoment`, `LearnedLogSNR` and `Uncertainty`, belong to the training state, beside the
network. The last two have objectives of their own and one optimizer for both.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sde_lib import (
    SDE,
    EDMWeighting,
    FlowMapSampler,
    LearnedLogSNR,
    LogitNormal,
    LogNormal,
    LossSecondMoment,
    MinSNR,
    NetworkFlowMap,
    NetworkScore,
    SoftMinSNR,
    TimeDistribution,
    Uncertainty,
    Uncorrected,
    Weighting,
    denoising_score_matching,
    flow_matching_weighting,
    likelihood_weighting,
    sigma2_weighting,
    stratified_uniform,
    uniform_log_sigma,
    uniform_log_snr,
    uniform_t,
    v_weighting,
)
from sde_lib.flow_map import FlowMapLosses, JumpLoss, flow_map_loss, lagrangian, semigroup
from sde_lib.samplers import DPMSolverPP2M

LEARNED = (Uncertainty, LossSecondMoment, LearnedLogSNR)
Learned = dict[str, Any]

# That of the learned parts: they have a few hundred weights, and every example updates each.
_LEARNING_RATE = 1e-2


def _log_normal(config: Any) -> LogNormal:
    return LogNormal(**_given(config))


def _logit_normal(config: Any) -> LogitNormal:
    return LogitNormal(**_given(config))


def _given(config: Any) -> dict[str, float]:
    chosen = {"mean": config.train.time_mean, "std": config.train.time_std}
    return {name: value for name, value in chosen.items() if value is not None}


WEIGHTINGS: dict[str, Callable[[Any], Weighting]] = {
    "sigma2": lambda config: sigma2_weighting,
    "likelihood": lambda config: likelihood_weighting,
    "flow_matching": lambda config: flow_matching_weighting,
    "v": lambda config: v_weighting,
    "min_snr": lambda config: MinSNR(config.train.min_snr_gamma),
    "soft_min_snr": lambda config: SoftMinSNR(config.model.sigma_data),
    "edm": lambda config: EDMWeighting(config.model.sigma_data),
    "edm_log_normal": lambda config: Uncorrected(EDMWeighting(config.model.sigma_data), _log_normal(config)),
    "flow_matching_logit_normal": lambda config: Uncorrected(flow_matching_weighting, _logit_normal(config)),
}
TIMES: dict[str, Callable[[Any], TimeDistribution]] = {
    "uniform_t": lambda config: uniform_t,
    "uniform_log_snr": lambda config: uniform_log_snr,
    "uniform_log_sigma": lambda config: uniform_log_sigma,
    "log_normal": _log_normal,
    "logit_normal": _logit_normal,
    "loss_second_moment": lambda config: LossSecondMoment.init(),
    "learned_log_snr": lambda config: LearnedLogSNR.init(),
}


@dataclass(frozen=True)
class Objective:
    """A weighting and a time distribution, any with any, as they are before training."""

    weighting: Weighting
    times: TimeDistribution

    @staticmethod
    def of(config: Any) -> "Objective":
        """Build the objective that config.train.weighting, uncertainty and times describe."""
        weighting = WEIGHTINGS[config.train.weighting](config)
        if config.train.uncertainty:
            weighting = Uncertainty.init(weighting)
        return OBJECTIVES[config.train.objective](config, weighting, TIMES[config.train.times](config))

    @property
    def parts(self) -> dict[str, Any]:
        """The learnable parts, by name."""
        both = {"weighting": self.weighting, "times": self.times}
        return {name: part for name, part in both.items() if isinstance(part, LEARNED)}

    @property
    def named(self) -> tuple[str, ...]:
        """The losses that the loss is the sum of, where it is one."""
        return ()

    def initial(self, params: Any = None) -> Learned:
        """The learned parts' state: {} when nothing is learned. params: the network's weights at the start."""
        parts = self.parts
        return {"parts": parts, "opt_state": self._optimizer.init(_with_objective(parts))} if parts else {}

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return optax.adam(_LEARNING_RATE)

    def losses(
        self, learned: Learned, score_fn: NetworkScore, x: jax.Array, key: jax.Array, cond: Any
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Compute the loss of each example at a random time.

        Returns:
            losses (n,): each example's.
            u (n,): the uniform number that each example's time was drawn by.
            parts: the losses by name, (n,) each, whose sum it is; {} where it is one loss.
        """
        given = self._given(learned, x, key)
        return denoising_score_matching(score_fn, x, key, cond, **given), given["u"], {}

    def _given(self, learned: Learned, x: jax.Array, key: jax.Array) -> dict[str, Any]:
        """The weighting and the times as they are now, and the numbers by which times are drawn."""
        parts = jax.lax.stop_gradient(learned.get("parts", {}))
        u = stratified_uniform(jax.random.split(key, 3)[0], x.shape[0])
        weighting, times = parts.get("weighting", self.weighting), parts.get("times", self.times)
        return {"weighting": weighting, "times": times, "u": u}

    def preview(self, score_fn: NetworkScore) -> tuple[Any, Any]:
        """The sampler that shows what was learned so far, and what it takes."""
        return DPMSolverPP2M(steps=20), score_fn

    def update(self, learned: Learned, sde: SDE, losses: jax.Array, u: jax.Array) -> Learned:
        """Update the learned parts after these losses."""
        if "parts" not in learned:
            return learned
        parts = learned["parts"]
        times = parts.get("times", self.times)

        def objective(trained: dict[str, Any]) -> jax.Array:
            total = jnp.zeros(())
            if "weighting" in trained:
                total += trained["weighting"].objective(sde, times(sde, u)[0], losses)
            if "times" in trained:
                total += trained["times"].objective(u, losses)
            return total

        trained = _with_objective(parts)
        updates, opt_state = self._optimizer.update(jax.grad(objective)(trained), learned["opt_state"], trained)
        seen = {name: part.update(u, losses) for name, part in parts.items() if name not in trained}
        return {**learned, "parts": {**optax.apply_updates(trained, updates), **seen}, "opt_state": opt_state}


@dataclass(frozen=True)
class FlowMapObjective(Objective):
    """A flow map's: the loss of its diagonal, with a weighting and times, and that of its jumps.

    taught: by the score that training starts from, which stays in the state as it is. So a run goes on without the
    teacher's folder.
    """

    jump_loss: JumpLoss
    taught: bool

    @property
    def named(self) -> tuple[str, ...]:
        return FlowMapLosses._fields

    def initial(self, params: Any = None) -> Learned:
        found = super().initial(params)
        return {**found, "teacher": jax.tree.map(jnp.copy, params)} if self.taught else found

    def losses(
        self, learned: Learned, score_fn: NetworkScore, x: jax.Array, key: jax.Array, cond: Any
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        teacher = replace(score_fn, params=jax.lax.stop_gradient(learned["teacher"])) if self.taught else None
        given = self._given(learned, x, key)
        found = flow_map_loss(flow_map_of(score_fn), x, key, cond, jump_loss=self.jump_loss, teacher=teacher, **given)
        return found.diagonal + found.jump, given["u"], found._asdict()

    def preview(self, score_fn: NetworkScore) -> tuple[Any, Any]:
        return FlowMapSampler(steps=2), flow_map_of(score_fn)


def flow_map_of(score_fn: NetworkScore) -> NetworkFlowMap:
    """The flow map of whose network this score is the diagonal."""
    return NetworkFlowMap(score_fn.apply, score_fn.params, score_fn.sde, score_fn.parameterization)


JUMP_LOSSES: dict[str, JumpLoss] = {"lagrangian": lagrangian, "semigroup": semigroup}
OBJECTIVES: dict[str, Callable[[Any, Weighting, TimeDistribution], Objective]] = {
    "score": lambda config, weighting, times: Objective(weighting, times),
    "flow_map": lambda config, weighting, times: FlowMapObjective(
        weighting, times, JUMP_LOSSES[config.train.flow_map_loss], bool(config.train.teacher)
    ),
}


def _with_objective(parts: dict[str, Any]) -> dict[str, Any]:
    """The parts that follow a gradient; the other one, LossSecondMoment, keeps statistics."""
    return {name: part for name, part in parts.items() if hasattr(part, "objective")}
