"""Train, or resume: python train.py --config=configs/digits.py --workdir=runs/digits [--config.train.lr=1e-3]."""

from absl import flags

from experiment import cli

WORKDIR = flags.DEFINE_string("workdir", "runs/digits", "The run directory.")


def main() -> int:
    from experiment.training.loop import train

    return train(flags.FLAGS.config, WORKDIR.value, given=flags.FLAGS["config"].override_values)


if __name__ == "__main__":
    cli.run_app(main, config="configs/digits.py")
