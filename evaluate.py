"""Evaluate a run: its samples, its held-out likelihood, or the FID of its samples.

    python evaluate.py --workdir=runs/digits
        [--samplers=em,pc,ode] [--n=1024] [--seeds=3] [--nfe=10,20,50] [--exact_score]

    python evaluate.py --workdir=runs/digits --likelihood
        [--n=...] [--probes=4] [--dequantization=uniform] [--k=1] [--bound] [--chain=1000] [--betas=sde]
        [--variance=fixed_small]

    python evaluate.py --workdir=runs/digits --fid --fid_weights=FILE
        [--fid_reference=train] [--samplers=...] [--nfe=...] [--n=...]

The first one writes WORKDIR/report/, or with --exact_score WORKDIR/report_exact_score/; the second one
WORKDIR/likelihood/; the third one WORKDIR/fid/.
"""

import experiment.command_line.start  # noqa: F401
from experiment import cli
from experiment.cli import flags
from experiment.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", "runs/digits", "The run directory.")
SAMPLERS = flags.DEFINE_list("samplers", None, "Names of samplers. Default: the run's config.eval.samplers.")
N = flags.DEFINE_integer("n", None, "Samples for each sampler and seed. Default: config.eval.n.")
SEEDS = flags.DEFINE_integer("seeds", None, "Sample seeds. Default: config.eval.seeds.")
SEED = flags.DEFINE_integer("seed", None, "The first sample seed. Default: config.eval.seed.")
NFE = flags.DEFINE_list("nfe", [], "Budgets of score calls, for curves of quality over NFE, of fixed-step samplers.")
EXACT_SCORE = flags.DEFINE_bool("exact_score", False, "Use the exact score of a known distribution, not the network.")
LIKELIHOOD = flags.DEFINE_bool("likelihood", False, "Only the held-out likelihood and its errors: WORKDIR/likelihood/.")
PROBES = flags.DEFINE_integer("probes", None, "Hutchinson's probes for each example. Default: config.eval.probes.")
DEQUANTIZATION = flags.DEFINE_string("dequantization", None, "uniform (default) or truncated_normal.")
K = flags.DEFINE_integer("k", None, "Importance-weighted draws of each example. Default: 1.")
BOUND = flags.DEFINE_bool("bound", False, "With --likelihood: the variational bound of the SDE's model too.")
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
LIKELIHOOD_N = flags.DEFINE_integer("likelihood_n", None, "Held-out examples. Default: config.eval.likelihood_n.")


def likelihood() -> int:
    from experiment.evaluation.likelihood import likelihood_of_run

    names = (N, SEED, PROBES, DEQUANTIZATION, K, BOUND, CHAIN, BETAS, VARIANCE)
    lines, path = likelihood_of_run(WORKDIR.value, {flag.name: flag.value for flag in names})
    print("\n".join([*lines, str(path)]))
    return 0


def fid() -> int:
    for flag in (LIKELIHOOD, EXACT_SCORE, SEEDS):
        if flag.value:
            raise UserError(f"--{flag.name} does not go with --fid: leave one of them out")

    from experiment.evaluation.fid import fid_of_run
    from experiment.evaluation.points import read_budgets

    given = {"weights": FID_WEIGHTS.value, "reference": FID_REFERENCE.value, "n": N.value, "seed": SEED.value}
    lines, path = fid_of_run(WORKDIR.value, SAMPLERS.value, given, read_budgets(NFE.value))
    print("\n".join([*lines, str(path)]))
    return 0


def main() -> int:
    for flag in (FID_WEIGHTS, FID_REFERENCE):
        if flag.value is not None and not FID.value:
            raise UserError(f"--{flag.name} goes with --fid: add it")
    if FID.value:
        return fid()
    if LIKELIHOOD.value:
        return likelihood()
    for flag in (CHAIN, BETAS, VARIANCE):
        if flag.value is not None:
            raise UserError(f"--{flag.name} goes with --likelihood: add it")

    from experiment.evaluation.evaluate import evaluate_run
    from experiment.evaluation.points import read_budgets
    from experiment.report.report import write_report
    from experiment.report.tables import text_table

    given = {"n": N.value, "seeds": SEEDS.value, "seed": SEED.value, "likelihood_n": LIKELIHOOD_N.value}
    run, evaluation = evaluate_run(WORKDIR.value, SAMPLERS.value, given, read_budgets(NFE.value), EXACT_SCORE.value)
    path = write_report(run, evaluation, run.workdir / ("report_exact_score" if EXACT_SCORE.value else "report"))
    print(text_table(evaluation.report))
    print(path)
    return 0


if __name__ == "__main__":
    cli.run_app(main)
