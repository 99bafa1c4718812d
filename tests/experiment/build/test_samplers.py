"""What the names of samplers and grids mean, and whose settings a sampler takes."""

from typing import Any

import pytest

from experiment.build.samplers import GRIDS, SAMPLERS, at_nfe, make_sampler
from experiment.common.errors import UserError
from experiment.config import check_config
from sde_lib import samplers
from sde_lib.samplers import in_log_snr, in_rho, in_t

# Of each name its class, and the settings by which it differs from the class's own.
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "em": ("EulerMaruyama", {"eta": 1.0}),
    "pc": ("PredictorCorrector", {"corrector_steps": 1}),
    "ode": ("ProbabilityFlow", {"steps": None}),
    "reverse_diffusion": ("ReverseDiffusion", {}),
    "pc_reverse_diffusion": ("PredictorCorrector", {"predictor": samplers.ReverseDiffusion()}),
    "ancestral": ("Ancestral", {}),
    "exponential_euler": ("ExponentialEuler", {}),
    "ddim": ("DDIM", {"eta": 0.0}),
    "dpmpp_2m": ("DPMSolverPP2M", {}),
    "dpmpp_3m": ("DPMSolverPP3M", {}),
    "dpmpp_3m_published": ("DPMSolverPP3MPublished", {}),
    "sde_dpmpp_1": ("SDEDPMSolverPP1", {}),
    "sde_dpmpp_2m": ("SDEDPMSolverPP2M", {}),
    "sde_dpmpp_2m_heun": ("SDEDPMSolverPP2MHeun", {}),
    "sa_solver": ("SASolver", {"predictor": 3, "corrector": 2}),
    "deis_t": ("DEIS", {"variable": in_t, "order": 3}),
    "deis_rho": ("DEIS", {"variable": in_rho, "order": 3}),
    "deis_log_snr": ("DEIS", {"variable": in_log_snr, "order": 3}),
    "ipndm": ("IPNDM", {"order": 4}),
    "unipc": ("UniPC", {"order": 3, "bh1": False}),
    "unipc_2": ("UniPC", {"order": 2, "bh1": False}),
    "unipc_bh1": ("UniPC", {"order": 3, "bh1": True}),
    "heun": ("Heun", {"churn": 0.0}),
    # Karras et al. 2022, table 5, their constants for ImageNet at 64 pixels.
    "heun_churn": ("Heun", {"churn": 40.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003}),
    "rk_midpoint": ("ProbabilityFlow", {"steps": 100}),
    "rk_bosh3": ("ProbabilityFlow", {"steps": 100}),
    "rk_tsit5": ("ProbabilityFlow", {"steps": 100}),
    "adaptive_sde": ("AdaptiveSDE", {}),
    "annealed_langevin": ("AnnealedLangevin", {}),
}
RUNGE_KUTTA = {"ode": "Tsit5", "rk_midpoint": "Midpoint", "rk_bosh3": "Bosh3", "rk_tsit5": "Tsit5"}


def test_a_sampler_s_name_is_of_its_class_and_settings() -> None:
    assert SAMPLERS.keys() == CLASSES.keys()
    for name, (cls, settings) in CLASSES.items():
        sampler = SAMPLERS[name].sampler
        assert type(sampler).__name__ == cls, name
        assert {key: getattr(sampler, key) for key in settings} == settings, name
        assert SAMPLERS[name].line, name
    assert {name: type(SAMPLERS[name].sampler.solver).__name__ for name in RUNGE_KUTTA} == RUNGE_KUTTA


def test_a_grid_s_name_is_of_its_class() -> None:
    expected = {"t": "UniformT", "log_snr": "UniformLogSNR", "karras": "Karras", "quadratic": "Quadratic"}
    assert {name: type(grid()).__name__ for name, grid in GRIDS.items()} == {**expected, "flow": "FlowTime"}


def test_settings_given_go_over_the_config_s_and_the_sampler_s_own() -> None:
    config = check_config({"sample": {"steps": 77, "denoise": False}})
    assert (make_sampler("ddim", config).steps, make_sampler("ddim", config).denoise) == (77, False)
    sampler = make_sampler("ddim", config, steps=9, eta=0.5, grid="karras")
    assert (sampler.steps, sampler.eta, sampler.grid) == (9, 0.5, GRIDS["karras"]())
    assert make_sampler("rk_tsit5", config).steps == 77  # at fixed steps: the config's


@pytest.mark.parametrize(
    "name, given, told",
    [
        ("eulr", {}, "the sampler is 'eulr'; it must be one of: em, pc"),
        ("dpmpp_2m", {"eta": 0.5}, "--eta: dpmpp_2m has no such setting; leave it out, or use one of: em"),
        ("dpmpp_3m", {"steps": 2}, "--steps is 2: give at least 3 for dpmpp_3m, or leave it out"),
        ("ddim", {"grid": "even"}, "--grid is 'even'; it must be one of: t, log_snr"),
        ("ddim", {"eta": 2.0}, "--sampler=ddim: DDIM: eta must be at most 1"),
    ],
)
def test_a_setting_that_cannot_be_is_told(name: str, given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        make_sampler(name, check_config({}), **given)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("eta", [-0.1, float("nan"), float("inf")])
def test_how_much_noise_is_a_number_that_can_be(eta: float) -> None:
    takes = [name for name, named in SAMPLERS.items() if hasattr(named.sampler, "eta")]
    assert len(takes) > 4
    for name in takes:
        with pytest.raises(UserError, match=f"--sampler={name}: .*eta must be"):
            make_sampler(name, check_config({}), eta=eta)


def test_a_budget_is_of_the_calls_before_the_final_denoising() -> None:
    config = check_config({})  # which denoises
    assert at_nfe("ddim", make_sampler("ddim", config), 20).nfe == 21
    assert at_nfe("heun", make_sampler("heun", config), 20).steps == 10
    assert at_nfe("ode", make_sampler("ode", config), 20) is None  # it chooses its own steps
    with pytest.raises(UserError, match=r"--nfe=7: .*leave heun out, or choose another budget"):
        at_nfe("heun", make_sampler("heun", config), 7)
