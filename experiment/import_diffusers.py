"""A diffusers `UNet2DModel` as a run: DDPM's architecture, such as google/ddpm-cifar10-32, and NCSN++'s, such as
google/ncsnpp-church-256.

    python -m experiment.import_diffusers FOLDER RUN [--data_name=cifar10]

FOLDER holds config.json and diffusion_pytorch_model.safetensors (or .bin), itself or in unet/. RUN is a run directory
that sample.py and evaluate.py take like any other. DDPM (Ho et al. 2020, arXiv:2006.11239) predicts the noise of a
chain of 1,000 steps, here under the VP process of the same betas, told the step at which the chain has the same log
SNR. NCSN++ (Song et al. 2021, arXiv:2011.13456) gives the score under VE, told log sigma.
"""

from absl import flags

from experiment import cli


def main(folder: str, run: str) -> int:
    from experiment.published.diffusers import import_folder

    given = flags.FLAGS
    print(import_folder(folder, run, given.data_name, given.data_path))
    return 0


if __name__ == "__main__":
    flags.DEFINE_string(
        "data_name", "cifar10", "What the network was trained on, for evaluate.py: as config.data.name."
    )
    flags.DEFINE_string("data_path", "", "The same, as a folder or zip of images or an .npz: as config.data.path.")
    cli.run_app(main, positional=("FOLDER", "RUN"))
