"""Write a diffusers `UNet2DModel` with DDPM's or NCSN++'s architecture as a run.

    python -m experiment.import_diffusers FOLDER RUN [--data_name=cifar10]

FOLDER holds config.json and diffusion_pytorch_model.safetensors (or .bin), itself or in unet/: that of
google/ddpm-cifar10-32, say, or google/ncsnpp-church-256. RUN is a run directory that sample.py and evaluate.py take
like any other.

DDPM (Ho et al. 2020, arXiv:2006.11239) predicts the noise of a chain of 1,000 steps. Here it stands under the VP
process of the same betas, and is told the step at which the chain has the same log SNR. NCSN++ (Song et al. 2021,
arXiv:2011.13456) gives the score under VE, and is told log sigma.
"""

import experiment.command_line.start  # noqa: F401
from experiment import cli
from experiment.cli import flags


def main(folder: str, run: str) -> int:
    from experiment.published.diffusers import import_folder

    given = flags.FLAGS
    print(import_folder(folder, run, given.data_name, given.data_path))
    return 0


if __name__ == "__main__":
    flags.DEFINE_string(
        "data_name", "cifar10", "The data set that the network was trained on, for evaluate.py: as config.data.name."
    )
    flags.DEFINE_string("data_path", "", "The same, as a folder or zip of images or an .npz: as config.data.path.")
    cli.run_app(main, positional=("FOLDER", "RUN"))
