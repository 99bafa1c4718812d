"""Write published weights of score_sde as a run: NCSN++, DDPM++ and DDPM, with their average applied.

    python -m experiment.import_score_sde CHECKPOINT RUN [--sde=ve] [--image_size=32] [--data_name=cifar10]

CHECKPOINT is a .pth of github.com/yang-song/score_sde_pytorch, whole or the network's weights alone, or those as
.safetensors or .npz. RUN is a run directory that sample.py and evaluate.py take like any other. The weights show which
network it is; flags say what they do not show. Song et al. 2021, arXiv:2011.13456.
"""

import experiment.command_line.start  # noqa: F401
from experiment import cli
from experiment.cli import flags


def define_flags() -> None:
    """Define the flags, each by default None, or a value that any other replaces.

    Where a flag is not given, the command uses what the weights show.
    """
    flags.DEFINE_string("sde", None, "vp | subvp | ve. Default: ve for a Fourier embedding, else vp.")
    for name, what in (("beta", "vp and subvp"), ("sigma", "ve")):
        for end in ("min", "max"):
            flags.DEFINE_float(
                f"{name}_{end}", None, f"For {what}. Default: as published, or the checkpoint's noise levels."
            )
    flags.DEFINE_integer(
        "image_size", None, "Pixels per side. Default: what puts the attention at 16x16, as published.", lower_bound=1
    )
    flags.DEFINE_bool(
        "fir", None, "Resampling by a filter. Default: where the weights show it, and in progressive networks."
    )
    flags.DEFINE_bool("skip_rescale", None, "Sums of two branches over sqrt(2). Default: true, but false for DDPM.")
    flags.DEFINE_bool(
        "centered", None, "Whether the network takes images in [-1, 1]. Default: true, but false (from 0 to 1) for ve."
    )
    flags.DEFINE_string(
        "noise_label", None, "As config.model.noise_label. Default: log_sigma, time or reversed_time, as published."
    )
    flags.DEFINE_string(
        "data_name", "cifar10", "The data set that the network was trained on, for evaluate.py: as config.data.name."
    )
    flags.DEFINE_string("data_path", "", "The same, as a folder or zip of images or an .npz: as config.data.path.")


def main(checkpoint: str, run: str) -> int:
    from experiment.published.score_sde import import_checkpoint

    print(import_checkpoint(checkpoint, run, flags.FLAGS.flag_values_dict()))
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run_app(main, positional=("CHECKPOINT", "RUN"))
