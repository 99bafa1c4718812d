"""NCSN++, DDPM++ and DDPM: sizes as published, resampling against its definition, every option's weights in use."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import NCSNpp, OneKey, split
from models.ncsnpp_blocks import Downsample, FourierEmbedding, Upsample, positional_embedding
from models.resample import fir_blur, fir_downsample, fir_upsample

VE = {"embedding": "fourier", "fir": True, "centered": False}
RESIDUAL = {**VE, "progressive_input": "residual"}
SKIP = {**VE, "progressive": "output_skip", "progressive_input": "input_skip"}
DDPM = {"blocks": 2, "resblock": "ddpm", "skip_rescale": False, "norm_groups": 32}


def sizes(**options):
    """(trained weights, frozen ones)."""
    _, shapes = split(nnx.eval_shape(lambda: NCSNpp(rngs=OneKey(), **options)))
    found = {jax.tree_util.keystr(path): np.prod(leaf.shape) for path, leaf in jax.tree.leaves_with_path(shapes)}
    frozen = sum(n for name, n in found.items() if "frequencies" in name)
    return sum(found.values()) - frozen, frozen


@pytest.mark.parametrize(
    ("expected", "options"),
    [
        ((61_804_419, 0), {}),
        ((62_758_787, 128), RESIDUAL),
        ((106_632_579, 0), {"blocks": 8}),
        ((107_586_947, 128), {**RESIDUAL, "blocks": 8}),
        ((62_693_251, 0), {**RESIDUAL, "embedding": "positional"}),
        ((35_218_947, 0), DDPM),
        ((65_574_421, 128), {**SKIP, "shape": (256, 256, 3), "channel_mults": (1, 1, 2, 2, 2, 2, 2), "blocks": 2}),
        (
            (105_785_880, 16),
            {
                **SKIP,
                "shape": (1024,) * 2 + (3,),
                "width": 16,
                "channel_mults": (1, 2, 4, 8, 16, 32, 32, 32),
                "blocks": 1,
            },
        ),
    ],
    ids=["DDPM++", "NCSN++", "DDPM++ deep", "NCSN++ deep", "NCSN++ under VP", "DDPM", "NCSN++ 256", "NCSN++ 1024"],
)
def test_sizes_are_those_published(expected, options):
    """Song et al.'s code, counted; frequencies of the Fourier embedding are not trained."""
    assert sizes(**options) == expected


def test_attention_per_block_adds_two_on_the_way_up():
    c = 256
    attention = 2 * c + 4 * (c * c + c)
    assert sizes(**DDPM, attention_per_block=True)[0] - sizes(**DDPM)[0] == 2 * attention


# Definitions, in float64, by loops over the taps: zeros between the pixels, zeros around, correlation, every second
# one.
TAPS = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


def correlate(x, kernel, before, after):
    """(n, h, w, c), kernel (kh, kw) for each channel, or (kh, kw, c, o)."""
    x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    h, w = x.shape[1] - kernel.shape[0] + 1, x.shape[2] - kernel.shape[1] + 1
    parts = (
        x[:, i : i + h, j : j + w] * kernel[i, j] if kernel.ndim == 2 else x[:, i : i + h, j : j + w] @ kernel[i, j]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    )
    return sum(parts)


def spread(x):
    y = np.zeros((x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]))
    y[:, ::2, ::2] = x
    return y


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(2, 6, 10, 3)).astype(np.float32)


def test_filters_against_their_definition(images):
    """StyleGAN2's: up, gain 4 and padding (2, 1); down, padding (1, 1); before a strided convolution (2, 2)."""
    np.testing.assert_allclose(fir_upsample(jnp.asarray(images)), 4 * correlate(spread(images), TAPS, 2, 1), atol=1e-5)
    np.testing.assert_allclose(
        fir_downsample(jnp.asarray(images)), correlate(images, TAPS, 1, 1)[:, ::2, ::2], atol=1e-5
    )
    np.testing.assert_allclose(fir_blur(jnp.asarray(images), 2), correlate(images, TAPS, 2, 2), atol=1e-5)


@pytest.mark.parametrize("fir", [True, False])
def test_resampling_with_a_convolution(images, fir):
    def weights(layer):
        layer.conv.bias[...] = jnp.arange(4.0)
        return np.asarray(layer.conv.kernel[...], np.float64)

    down, up = (make(3, 4, fir=fir, dtype=jnp.float32, rngs=nnx.Rngs(1)) for make in (Downsample, Upsample))
    kernel = weights(down)
    expected = correlate(correlate(images, TAPS, 2, 2) if fir else images, kernel, *((0, 0) if fir else (0, 1)))[
        :, ::2, ::2
    ]
    np.testing.assert_allclose(down(jnp.asarray(images)), expected + np.arange(4) * 1.0, atol=1e-4)
    kernel = weights(up)
    # the transpose of a strided convolution, then the filter with gain 4; its bias passes the filter's zeros at the
    # border
    if fir:
        wide = np.zeros((2, 2 * 6 - 1, 2 * 10 - 1, 3))
        wide[:, ::2, ::2] = images
        expected = 4 * correlate(correlate(wide, kernel, 2, 2), TAPS, 1, 1) + np.arange(4) * 1.0
    else:
        expected = correlate(np.kron(images, np.ones((1, 2, 2, 1))), kernel, 1, 1) + np.arange(4) * 1.0
    np.testing.assert_allclose(up(jnp.asarray(images)), expected, atol=1e-4)


def test_embeddings():
    label = jnp.array([0.0, 3.5, 999.0])
    k = np.arange(8)
    phase = np.outer(np.asarray(label, np.float64), 1e4 ** (-k / 7))
    np.testing.assert_allclose(
        positional_embedding(label, 16), np.concatenate([np.sin(phase), np.cos(phase)], 1), atol=2e-4
    )
    fourier = FourierEmbedding(4096, 16.0, rngs=nnx.Rngs(0))
    w = np.asarray(fourier.frequencies[...], np.float64)
    assert abs(w.mean()) < 1 and abs(w.std() - 16) < 0.6
    label = jnp.array([-4.6, 0.0, 3.9])  # log sigma: phases up to 1e3 rad
    phase = 2 * np.pi * np.outer(np.asarray(label, np.float64), w)
    np.testing.assert_allclose(fourier(label), np.concatenate([np.sin(phase), np.cos(phase)], 1), atol=1e-3)


def test_layers_start_at_the_published_scales():
    """Ho et al.'s NIN starts at 0.1, Song et al.'s last layers at 1e-10 for 0: of the variance over the mean fan."""
    params = split(NCSNpp((8, 8, 2), width=64, channel_mults=(1, 2), blocks=1, attention=(4,), rngs=nnx.Rngs(0)))[1]

    def scale(kernel):
        return float(np.var(np.asarray(kernel, float))) * np.prod(kernel.shape[:-2]) * sum(kernel.shape[-2:]) / 2

    block, attention = params["down"]["01"]["blocks"]["00"], params["down"]["01"]["attention"]["00"]
    for kernel, expected in (
        (block["conv0"]["kernel"], 1.0),
        (block["conv1"]["kernel"], 1e-10),
        (block["shortcut"]["kernel"], 1.0),
        (attention["query"]["kernel"], 0.1),
        (attention["value"]["kernel"], 0.1),
        (attention["out"]["kernel"], 1e-10),
    ):
        np.testing.assert_allclose(scale(kernel), expected, rtol=0.1)


TINY = {"shape": (8, 8, 2), "width": 8, "channel_mults": (1, 2), "blocks": 1, "attention": (4,)}
OPTIONS = {
    "biggan": {},
    "biggan, fir, in [0, 1]": {"fir": True, "centered": False, "num_classes": 3},
    "ddpm": {"resblock": "ddpm", "skip_rescale": False, "attention_per_block": True},
    "ddpm, fir": {"resblock": "ddpm", "fir": True, "norm_groups": 4},
    "ddpm, no convolutions": {"resblock": "ddpm", "resample_with_conv": False},
    "output_skip, input_skip": {**SKIP},
    "output_skip, input_skip, cat, plain": {
        **SKIP,
        "fir": False,
        "progressive_combine": "cat",
        "embedding": "positional",
    },
    "residual both ways": {**RESIDUAL, "progressive": "residual"},
    "residual both ways, plain": {"progressive_input": "residual", "progressive": "residual", "resblock": "ddpm"},
}


def random_network(**options):
    """(apply, params, the generator of their random numbers)."""
    apply, shapes = split(nnx.eval_shape(lambda: NCSNpp(rngs=OneKey(), **TINY, **options)))
    rng = np.random.default_rng(1)

    def draw(leaf):
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(max(leaf.shape[-1], 1)), jnp.float32)

    return apply, jax.tree.map(draw, shapes), rng


@pytest.mark.parametrize("name", OPTIONS)
def test_every_weight_but_the_frozen_ones_learns(name):
    """Random weights; the gradient of a random function of the output. A weight that nothing reads has none, nor has a
    key's bias.
    """
    apply, params, rng = random_network(**OPTIONS[name])
    x, v = (jnp.asarray(rng.normal(size=(4, 8, 8, 2)), jnp.float32) for _ in range(2))
    cond = jnp.array([0, 1, 2, 3]) if "num_classes" in OPTIONS[name] else None
    gradient = jax.grad(lambda p: jnp.vdot(v, apply(p, x, jnp.linspace(0.1, 1.0, 4), cond)))
    grads = jax.jit(gradient, compiler_options={"xla_backend_optimization_level": 0})(
        params
    )  # compiling is all that takes time
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(grads)
    }
    largest = max(float(jnp.abs(leaf).max()) for leaf in found.values())
    still = {name for name, leaf in found.items() if not jnp.abs(leaf).max() > 1e-6 * largest}
    assert still == {name for name in found if name.endswith(("key/bias", "frequencies"))}


@pytest.mark.parametrize("rescale, gain", [(True, 0.5**0.5), (False, 1.0)])
def test_every_sum_of_two_branches_is_over_root_two_or_none_is(rescale, gain):
    options = {**TINY, **OPTIONS["residual both ways"], "skip_rescale": rescale}
    network = nnx.eval_shape(lambda: NCSNpp(rngs=OneKey(), **options))
    gains = [module.gain for _, module in network.published_order() if hasattr(module, "gain")]
    assert len(gains) > 8 and {network.gain, *gains} == {gain}
    one = jnp.ones(2)
    joined, pyramid = network._join_input(lambda x: 3 * x, one, one)
    np.testing.assert_allclose(joined, 4 * gain)
    np.testing.assert_array_equal(pyramid, joined)


@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_images_in_the_unit_interval_are_centred_inside(remat):
    apply, params, _ = random_network()
    other, _, _ = random_network(centered=False, remat=remat)
    x, label = jax.random.uniform(jax.random.key(0), (2, 8, 8, 2)), jnp.array([1.0, 500.0])
    run = partial(jax.jit, static_argnums=0)(lambda apply, x: apply(params, x, label))
    np.testing.assert_allclose(run(other, x), run(apply, 2 * x - 1), rtol=1e-4, atol=1e-5)
