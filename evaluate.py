"""Evaluate a run: its samples, its held-out likelihood, or the FID of its samples.

    python evaluate.py --workdir=runs/digits
        [--samplers=em,pc,ode] [--n=1024] [--seeds=3] [--nfe=10,20,50] [--guidance=1,2,3] [--exact_score]

    python evaluate.py --workdir=runs/digits --likelihood
        [--n=...] [--probes=4] [--dequantization=uniform] [--k=1] [--bound] [--chain=1000] [--betas=sde]
        [--variance=fixed_small]

    python evaluate.py --workdir=runs/digits --fid --fid_weights=FILE
        [--fid_reference=train] [--samplers=...] [--nfe=...] [--n=...]

The first one writes WORKDIR/report/, or with --exact_score WORKDIR/report_exact_score/; the second one
WORKDIR/likelihood/; the third one WORKDIR/fid/; or all of them --out=DIR.
"""

import experiment.command_line.start  # noqa: F401
from experiment import cli
from experiment.cli import flags

WORKDIR = flags.DEFINE_string("workdir", "runs/digits", "The run directory.")
OUT = flags.DEFINE_string(
    "out", None, "Folder for the results. Default: WORKDIR/report, WORKDIR/likelihood or WORKDIR/fid."
)
DATA = flags.DEFINE_string("data", "", "Where the run's data lie now. Default: where they were when it was trained.")
CACHE = flags.DEFINE_string("cache", "", "Where prepared data are kept now. Default: the run's config.data.cache.")
SAMPLERS = flags.DEFINE_list("samplers", None, "Names of samplers, or list. Default: the run's config.eval.samplers.")
N = flags.DEFINE_integer("n", None, "Samples for each sampler and seed, or examples. Default: config.eval.n.")
SEEDS = flags.DEFINE_integer("seeds", None, "Sample seeds. Default: config.eval.seeds.")
SEED = flags.DEFINE_integer("seed", None, "The first seed, 0 to 2^32 - 1. Default: config.eval.seed.")
NFE = flags.DEFINE_list("nfe", [], "Budgets of score calls, for curves of quality over NFE, of fixed-step samplers.")
GUIDANCE = flags.DEFINE_list(
    "guidance",
    None,
    "Scales of guidance, for curves of quality and obedience over them; 1 is none. Default: 1,1.5,2,3,5 for a run by "
    "labels that was trained with config.train.cond_dropout, otherwise, and with --guidance=, no curves.",
)
EXACT_SCORE = flags.DEFINE_bool("exact_score", False, "Use the exact score of a known distribution, not the network.")
LIKELIHOOD = flags.DEFINE_bool("likelihood", False, "Only the held-out likelihood and its errors: WORKDIR/likelihood/.")
LIKELIHOOD_N = flags.DEFINE_integer("likelihood_n", None, "Held-out examples. Default: config.eval.likelihood_n.")
PROBES = flags.DEFINE_integer("probes", None, "Hutchinson's probes for each example. Default: config.eval.probes.")
DEQUANTIZATION = flags.DEFINE_string("dequantization", None, "uniform (default) or truncated_normal.")
K = flags.DEFINE_integer("k", None, "Importance-weighted draws of each example. Default: 1.")
BOUND = flags.DEFINE_bool("bound", None, "With --likelihood: the variational bound of the SDE's model too.")
CHAIN = flags.DEFINE_integer("chain", None, "With --likelihood: the ELBO of the discrete chain of so many steps too.")
BETAS = flags.DEFINE_string("betas", None, "The chain's betas: sde (default: the run's), linear, cosine or log_snr.")
VARIANCE = flags.DEFINE_string("variance", None, "The chain's variances: fixed_small (default) or fixed_large.")
FID = flags.DEFINE_bool("fid", False, "Only FID, KID, precision and recall, by --fid_weights: WORKDIR/fid/.")
FID_WEIGHTS = flags.DEFINE_string("fid_weights", None, "With --fid: the Inception weights' file; it is not downloaded.")
FID_REFERENCE = flags.DEFINE_string(
    "fid_reference",
    None,
    "With --fid: train (default) or test of the run's data, a folder, zip or .npz of images, or a data set's name.",
)
MODES = {
    "": "samplers n seeds seed nfe guidance exact_score likelihood_n probes".split(),
    "likelihood": "n seed probes dequantization k bound chain betas variance".split(),
    "fid": "samplers n seed nfe fid_weights fid_reference".split(),
}


def main() -> int:
    from experiment.build.samplers import sampler_list

    if SAMPLERS.value == ["list"]:
        print(sampler_list())
        return 0
    mode = cli.mode_of(MODES, FID, LIKELIHOOD)
    given = {name: flags.FLAGS[name].value for name in MODES[mode]}
    place = {"out": OUT.value, "data": DATA.value, "cache": CACHE.value}
    print("\n".join({"": report, "likelihood": likelihood, "fid": fid}[mode](given, place)))
    return 0


def likelihood(given: dict, place: dict) -> list[str]:
    from experiment.evaluation.likelihood import likelihood_of_run

    return likelihood_of_run(WORKDIR.value, given, **place)


def fid(given: dict, place: dict) -> list[str]:
    from experiment.evaluation.fid import fid_of_run

    return fid_of_run(WORKDIR.value, {name.removeprefix("fid_"): value for name, value in given.items()}, **place)


def report(given: dict, place: dict) -> list[str]:
    from experiment.report.of_run import report_of_run

    return report_of_run(WORKDIR.value, given, **place)


if __name__ == "__main__":
    cli.run_app(main)
