"""What a run shows of itself while it trains: the loss of held-out examples, and a picture of a few samples.

Both are functions of the averaged weights and of config.seed alone, so they neither change training nor depend on
where it was interrupted.
"""

from typing import Any

import jax
import numpy as np

from experiment.data.dataset import some_of
from experiment.data.scaling import Scaled
from experiment.devices.sharding import put_rows, round_up
from experiment.run.sampling import as_data, picture_of
from experiment.training.trainer import State, Trainer
from models.conditions import nothing_rows
from sde_lib import NetworkScore, sample

MOST_BATCHES = 8  # of held-out examples
IMAGES, POINTS = 16, 512
_LOSS, _SAMPLES = 2**31 - 1, 2**31 - 2  # what the seed's key is folded with: no step gets so far


class Preview:
    """The held-out loss and a few samples of a trainer's state, now and then."""

    def __init__(self, trainer: Trainer):
        self._trainer = trainer
        self._mean_loss = jax.jit(self._loss)

    def due(self, step: int) -> bool:
        """Tell whether the log's row of this step has a preview: the first row at or after each preview_every steps."""
        train = self._trainer.config.train
        before = (step - 1) // train.log_every * train.log_every
        return bool(train.preview_every) and step // train.preview_every > before // train.preview_every

    def held_out_losses(self, state: State) -> dict[str, float]:
        """The mean loss of some held-out examples under the averaged weights, always with the same noise.

        Of a network that learns to do without its condition it is the loss with it, and beside it the one without.
        """
        found = {"held_out_loss": self.held_out_loss(state)}
        if self._trainer.config.train.cond_dropout:
            found["held_out_loss_without_condition"] = self.held_out_loss(state, told=False)
        return found

    def held_out_loss(self, state: State, told: bool = True) -> float:
        """One of the `held_out_losses`."""
        trainer, train = self._trainer, self._trainer.config.train
        test, devices = trainer.dataset.test, trainer.mesh.size
        size = max(min(train.batch_size // train.accumulate, len(test)) // devices, 1) * devices
        batches = min(max(len(test) // size, 1), MOST_BATCHES)
        chosen, losses = np.resize(some_of(batches * size, len(test)), (batches, size)), []
        for i, rows in enumerate(chosen):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(trainer.config.seed), _LOSS), i)
            batch = self._batch(rows)
            if not told and trainer.kind is not None:
                batch["cond"] = nothing_rows(trainer.kind, len(rows))
            losses.append(self._mean_loss(state["ema"], state["learned"], batch, key))
        return float(np.mean([np.asarray(loss) for loss in losses]))

    def _loss(self, params: Any, learned: Any, batch: Any, key: jax.Array) -> jax.Array:
        key_data, key_loss = jax.random.split(key)
        batch = {**batch, "x": self._trainer.prepare(batch["x"], key_data)}
        return self._trainer.loss(params, learned, batch, key_loss)[0]

    def _batch(self, rows: np.ndarray) -> Any:
        trainer = self._trainer
        x = trainer.dataset.test.x
        batch = {"x": put_rows(rows, x if trainer.scaling.units is None else Scaled(trainer.scaling, x), trainer.mesh)}
        told = trainer.conditions(trainer.dataset.test.rows(rows))
        if told is not None:
            batch["cond"] = jax.tree.map(lambda part: put_rows(np.arange(len(rows)), part, trainer.mesh), told)
        return batch

    def picture(self, state: State) -> bytes | None:
        """A PNG of a few samples of the averaged weights, of the classes of the first held-out examples.

        None where several hosts hold the samples.
        """
        trainer = self._trainer
        shape = tuple(trainer.dataset.shape)
        if jax.process_count() > 1:
            return None
        n = round_up(POINTS if len(shape) == 1 else IMAGES, trainer.mesh)
        score_fn = NetworkScore(trainer.apply, state["ema"], trainer.sde, trainer.parameterization)
        cond = self._batch(np.arange(n) % len(trainer.dataset.test)).get("cond")
        key = jax.random.fold_in(jax.random.key(trainer.config.seed), _SAMPLES)
        sampler, of_network = trainer.objective.preview(score_fn)
        x = np.nan_to_num(np.asarray(sample(sampler, of_network, key, n, shape, cond=cond).x))
        return picture_of(trainer.scaling, as_data(trainer.scaling, x))
