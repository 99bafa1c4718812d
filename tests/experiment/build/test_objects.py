"""What the names in a config mean: a run's config.json must be read alike for ever."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
import sde_lib
from experiment.build.objective import TIMES, WEIGHTINGS
from experiment.build.objects import (
    MODELS,
    NOISE_LABELS,
    PARAMETERIZATIONS,
    SCHEDULES,
    SDES,
    abstract_network,
    build_network,
    build_parameterization,
    build_sde,
    compute_dtype,
    construct,
)
from experiment.common.errors import UserError
from experiment.config import check_config

NAMES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "sde.name": (
        SDES,
        {"vp": "VP", "subvp": "SubVP", "ve": "VE", "cosine_vp": "CosineVP", "rectified_flow": "RectifiedFlow"},
    ),
    "model.name": (MODELS, {"mlp": "MLP", "unet": "UNet", "dit": "DiT", "ncsnpp": "NCSNpp"}),
    "model.parameterization": (
        PARAMETERIZATIONS,
        {
            "eps": "EpsilonPrediction",
            "x0": "DenoiserPrediction",
            "edm": "EDMPreconditioning",
            "gaussian": "GaussianPreconditioning",
            "v": "VPrediction",
            "velocity": "VelocityPrediction",
            "raw_eps": "RawEpsilonPrediction",
            "raw_score": "RawScorePrediction",
        },
    ),
}


@pytest.mark.parametrize("key", NAMES)
def test_a_name_is_of_its_class(key: str) -> None:
    table, expected = NAMES[key]
    library = models if key == "model.name" else sde_lib
    assert table == {name: getattr(library, cls) for name, cls in expected.items()}


def test_a_name_of_the_objective_is_of_its_function() -> None:
    config = check_config({})
    weightings = {
        "sigma2": sde_lib.sigma2_weighting,
        "likelihood": sde_lib.likelihood_weighting,
        "flow_matching": sde_lib.flow_matching_weighting,
        "v": sde_lib.v_weighting,
        "min_snr": sde_lib.MinSNR(5.0),
        "soft_min_snr": sde_lib.SoftMinSNR(0.5),
        "edm": sde_lib.EDMWeighting(0.5),
        "edm_log_normal": sde_lib.Uncorrected(sde_lib.EDMWeighting(0.5), sde_lib.LogNormal(-1.2, 1.2)),
        "flow_matching_logit_normal": sde_lib.Uncorrected(
            sde_lib.flow_matching_weighting, sde_lib.LogitNormal(0.0, 1.0)
        ),
    }
    assert {name: make(config) for name, make in WEIGHTINGS.items()} == weightings
    times = {name: make(config) for name, make in TIMES.items()}
    assert isinstance(times.pop("loss_second_moment"), sde_lib.LossSecondMoment)
    assert isinstance(times.pop("learned_log_snr"), sde_lib.LearnedLogSNR)
    assert times == {
        "uniform_t": sde_lib.uniform_t,
        "uniform_log_snr": sde_lib.uniform_log_snr,
        "uniform_log_sigma": sde_lib.uniform_log_sigma,
        "log_normal": sde_lib.LogNormal(-1.2, 1.2),
        "logit_normal": sde_lib.LogitNormal(0.0, 1.0),
    }


def test_a_noise_label_is_of_its_formula() -> None:
    vp, t = sde_lib.VP(), jnp.array([0.1, 0.5])
    config = check_config({})
    found = {name: np.asarray(make(config)(vp, t), float) for name, make in NOISE_LABELS.items()}
    np.testing.assert_allclose(found["log_snr"], np.log(vp.sigma(t) / vp.alpha(t)) / 4, rtol=1e-4)
    np.testing.assert_allclose(found["log_sigma"], np.log(vp.sigma(t)), rtol=1e-4)
    np.testing.assert_allclose(found["time"], 999 * t, rtol=1e-6)
    np.testing.assert_allclose(found["reversed_time"], 999 * (1 - t), rtol=1e-6)
    np.testing.assert_allclose(found["chain"], 1000 * t - 1, atol=1.0)  # of 1,000 steps, the first of which is label 0
    log_snr = np.asarray(NOISE_LABELS["chain"](config).log_snr)  # type: ignore[attr-defined]
    assert len(log_snr) == 1000 and log_snr[0] == pytest.approx(np.log((1 - 1e-4) / 1e-4))  # the first beta is 0.1/1000


def test_schedules_are_of_their_names() -> None:
    assert float(SCHEDULES["constant"](0.3, 10)(7)) == pytest.approx(0.3)
    assert float(SCHEDULES["cosine"](0.3, 10)(5)) == pytest.approx(0.15)


def test_settings_reach_what_is_built() -> None:
    config = check_config(
        {
            "sde": {"name": "ve", "sigma_max": 9.0, "t_min": 0.01},
            "model": {"parameterization": "edm", "sigma_data": 0.3},
        }
    )
    assert build_sde(config) == sde_lib.VE(sigma_max=9.0, t_min=0.01)
    assert build_parameterization(config) == sde_lib.EDMPreconditioning(sigma_data=0.3)
    unset = check_config({"sde": {"name": "ve"}})
    assert build_sde(unset) == sde_lib.VE()  # None leaves a setting at the class's own
    with pytest.raises(UserError, match=r"config.sde: CosineVP: t_min must be less than t_max"):
        construct(sde_lib.CosineVP, {"t_min": 0.999}, "config.sde")


def test_the_compute_dtype_is_float32_on_cpu_unless_told() -> None:
    assert [jnp.dtype(compute_dtype(name)).name for name in ("auto", "float32", "bfloat16")] == [
        "float32",
        "float32",
        "bfloat16",
    ]


def data(shape: tuple[int, ...], num_classes: int = 0) -> Any:
    return SimpleNamespace(shape=shape, num_classes=num_classes)


def test_weights_are_drawn_from_the_config_s_seed() -> None:
    model = {"name": "mlp", "width": 8, "depth": 1}
    first, again, other = (
        build_network(check_config({"seed": seed, "model": model}), data((2,)))[1]["inner"]["kernel"]
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert np.all(first != other)


@pytest.mark.parametrize("centered, dtype, classes", [(True, "float32", 0), (False, "bfloat16", 3)])
def test_the_network_is_told_of_the_data(centered: bool, dtype: str, classes: int) -> None:
    options = {"name": "ncsnpp", "width": 8, "channel_mults": (1,), "blocks": 1, "dtype": dtype}
    model = {**options, "class_conditional": classes > 0}
    config = check_config({"model": model, "data": {"centered": centered}})
    apply, shapes = abstract_network(config, data((4, 4, 2), 3))
    network: Any = nnx.merge(getattr(apply, "apply", apply).graphdef, shapes)
    assert (network.shape, network.centered, network.dtype) == ((4, 4, 2), centered, dtype)
    assert (shapes["labels"].shape if classes else shapes.get("labels")) == ((4, 32) if classes else None)


def test_classes_of_data_without_labels_are_a_mistake() -> None:
    config = check_config({"model": {"class_conditional": True}})
    with pytest.raises(UserError, match=r"config.model.condition is label, which .* but digits has no labels: set it"):
        abstract_network(config, data((4, 4, 2)))
