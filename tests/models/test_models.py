"""The networks: pure functions of (params, x, c_noise, cond, key), equal for equal architectures, zero until trained,
able to learn.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from models import MLP, DiT, NCSNpp, OneKey, UNet, split
from models.dit import DiTBlock, patchify, sincos_positions, unpatchify
from models.layers import Condition, Linear, SelfAttention, group_norm, initialiser, layer_norm, noise_embedding
from models.mlp import MLPBlock
from models.resample import downsample, upsample
from models.unet import ResBlock

NETWORKS = {
    "mlp": partial(MLP, shape=(3,), width=16, depth=2),
    "unet": partial(UNet, shape=(8, 8, 1), width=8, attention=(4,), heads=2),
    "dit": partial(DiT, shape=(8, 8, 1), width=16, depth=2, heads=2, patch_size=2),
    "ncsnpp": partial(
        NCSNpp, shape=(8, 8, 1), width=8, channel_mults=(1, 2), blocks=1, attention=(4,), embedding="fourier",
        fourier_scale=1.0, fir=True,
        progressive_input="residual", progressive="output_skip",
    ),
}  # fmt: skip
every_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
call = jax.jit(lambda apply, *args, key=None: apply(*args, key=key), static_argnums=0)


def random_params(make, seed=0, **options):
    """(apply, params) with random numbers in every place, so that no layer that starts at zero hides what comes before
    it.
    """
    apply, shapes = split(nnx.eval_shape(lambda: make(rngs=OneKey(), **options)))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        size = leaf.shape[0] ** -0.5 if path[-1].key == "kernel" and leaf.ndim == 2 else 0.2
        return jnp.asarray((path[-1].key == "scale") + size * rng.standard_normal(leaf.shape), jnp.float32)

    return apply, jax.tree.map_with_path(draw, shapes)


def initial(make, **options):
    """(apply, params) as the network starts."""
    apply, _ = split(nnx.eval_shape(lambda: make(rngs=OneKey(), **options)))
    draw = jax.jit(
        lambda: split(make(rngs=nnx.Rngs(0), **options))[1],
        compiler_options={"xla_backend_optimization_level": 0},  # compiling is all that takes time
    )
    return apply, draw()


def example(make, seed=0, **options):
    """(apply, params, x, c_noise): random weights and a batch of five; three classes and dropout unless told."""
    apply, params = random_params(make, seed, **{"num_classes": 3, "dropout": 0.3, **options})
    x = jax.random.normal(jax.random.key(1), (5, *make.keywords["shape"]))
    return apply, params, x, jnp.linspace(-1.0, 1.0, 5)


def relative(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("name", NETWORKS)
def test_an_untrained_network_gives_zero(name):
    make = NETWORKS[name]
    apply, params = initial(make, num_classes=3, dropout=0.3)
    _, _, x, c_noise = example(make)
    y = np.asarray(call(apply, params, x, c_noise, jnp.arange(5) % 4))
    if name == "ncsnpp":  # as published: no layer starts at zero, the last ones start at 1e-5 of the others
        assert 1e-7 < np.abs(y).max() < 1e-3
    else:
        assert not np.any(y)
    assert max(np.abs(np.asarray(p)).max() for p in jax.tree.leaves(params)) > 0.1


@every_network
def test_three_sets_of_weights_are_traced_once(make):
    outputs, programs = [], []
    for seed in range(3):
        apply, params, x, c_noise = example(make, seed)
        assert all(isinstance(k.key, str) for path, _ in jax.tree.leaves_with_path(params) for k in path)
        outputs.append(call(apply, params, x, c_noise))
        programs.append(call._cache_size())
    assert len(set(programs)) == 1
    assert relative(outputs[0], outputs[1]) > 0.1


@every_network
def test_apply_is_equal_exactly_for_equal_options(make):
    def architecture(rngs=OneKey, **options):
        return split(nnx.eval_shape(lambda: make(rngs=rngs(), **{"dropout": 0.1, **options})))[0]

    first = architecture(lambda: nnx.Rngs(0))
    for again in (architecture(lambda: nnx.Rngs(1)), architecture()):
        assert first == again and hash(first) == hash(again)
    for other in ({"dropout": 0.2}, {"num_classes": 3}, {"width": 24}, {"dtype": "bfloat16"}):
        assert first != architecture(**other), other
    assert architecture(dtype="bfloat16") == architecture(dtype=jnp.bfloat16)


def test_built_networks_are_equal_and_hold_no_arrays_outside_params():
    def make(seed):
        return NETWORKS["mlp"](rngs=nnx.Rngs(seed), dropout=0.3, num_classes=3)

    (a, p), (b, q) = split(make(0)), split(make(1))
    abstract, _ = split(nnx.eval_shape(lambda: make(0)))
    assert a == b == abstract and hash(a) == hash(b) == hash(abstract)
    assert relative(p["inner"]["kernel"], q["inner"]["kernel"]) > 0.1
    assert set(p) == {"blocks", "condition", "inner", "modulation", "outer"}  # no state of the dropout
    assert set(p["blocks"]["00"]) == {"inner", "outer"}


@every_network
def test_a_row_does_not_depend_on_its_batch(make):
    apply, params, x, c_noise = example(make)
    labels = jnp.array([0, 1, 2, 3, 0])
    batch = call(apply, params, x, c_noise, labels)
    for i in range(5):
        order = np.full(5, (i + 1) % 5)
        order[i] = i  # the other rows all become the next one
        other = call(apply, params, x[order], c_noise[order], labels[order])
        np.testing.assert_allclose(batch[i], other[i], atol=1e-5, rtol=1e-5)
    alone = call(apply, params, x[2:3], c_noise[2:3], labels[2:3])
    np.testing.assert_allclose(batch[2], alone[0], atol=1e-5, rtol=1e-5)


def test_noise_embedding_separates_levels():
    c = jnp.linspace(-2.5, 2.5, 501)
    e = np.asarray(noise_embedding(c))
    distance = np.linalg.norm(e[:, None] - e[None], axis=-1) / np.sqrt(e.shape[1])
    gap = np.abs(np.subtract.outer(np.asarray(c), np.asarray(c)))
    assert distance[gap > 0.04].min() > 0.15  # log(sigma/alpha) apart by 0.16 or more, near or far: never alike
    assert distance[(gap > 0) & (gap < 0.011)].max() < 0.25  # and smooth: no jump between neighbours
    np.testing.assert_allclose(np.mean(e**2, axis=1), 1.0, rtol=1e-5)
    fine = np.asarray(noise_embedding(jnp.linspace(-2.5, 2.5, 5001)))
    assert np.linalg.norm(np.diff(fine, axis=0), axis=1).min() > 0.02  # float32 phases: bfloat16 would merge these


@every_network
def test_output_depends_on_the_noise_level(make):
    apply, params, x, _ = example(make)
    y = [call(apply, params, x, jnp.full(5, c)) for c in (-2.0, 0.0, 0.1, 2.0)]
    for i in range(4):
        for j in range(i):
            assert relative(y[i], y[j]) > 0.01


@every_network
def test_labels(make):
    apply, params, x, c_noise = example(make)
    none = call(apply, params, x, c_noise)
    outputs = [call(apply, params, x, c_noise, jnp.full(5, label)) for label in range(4)]
    np.testing.assert_allclose(none, outputs[3], atol=1e-6)
    for i in range(4):
        for j in range(i):
            assert relative(outputs[i], outputs[j]) > 0.01
    wrong = call(apply, params, x, c_noise, jnp.array([0, 4, -1, 2, 3]))
    isnan = np.isnan(np.asarray(wrong)).reshape(5, -1)
    assert list(isnan.all(axis=1)) == list(isnan.any(axis=1)) == [False, True, True, False, False]


@every_network
def test_bad_calls_raise(make):
    apply, params, x, c_noise = example(make)
    with pytest.raises(ValueError, match="was built for x of shape"):
        apply(params, x[..., None], c_noise)
    with pytest.raises(ValueError, match="broadcast it first"):
        apply(params, x, jnp.array(0.0))
    with pytest.raises(ValueError, match="one integer label per example"):
        apply(params, x, c_noise, jnp.zeros(5))
    apply, params, x, c_noise = example(make, num_classes=0)
    with pytest.raises(ValueError, match="num_classes, or pass cond=None"):
        apply(params, x, c_noise, jnp.zeros(5, int))


def test_attention_against_numpy():
    width, heads, size = 12, 3, 4
    attention = SelfAttention(width, heads, rngs=nnx.Rngs(0))
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 7, width)))
    q, k, v = np.split(x @ np.asarray(attention.qkv.kernel[...]), 3, axis=-1)
    expected = np.zeros_like(x)
    for h in range(heads):
        s = slice(h * size, (h + 1) * size)
        logits = np.einsum("nqd,nkd->nqk", q[..., s], k[..., s]) / np.sqrt(size)
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        expected[..., s] = weights @ v[..., s]
    np.testing.assert_allclose(attention(jnp.asarray(x)), expected @ np.asarray(attention.out.kernel[...]), atol=1e-5)


def test_dit_without_positions_moves_with_its_patches():
    apply, params, x, c_noise = example(NETWORKS["dit"])
    order = np.random.default_rng(0).permutation(16)

    def shuffle(images):
        return unpatchify(patchify(images, 2)[:, order], 2, (8, 8, 1))

    assert relative(call(apply, params, shuffle(x), c_noise), shuffle(call(apply, params, x, c_noise))) > 0.1
    params["positions"] = jnp.zeros_like(params["positions"])
    np.testing.assert_allclose(
        call(apply, params, shuffle(x), c_noise), shuffle(call(apply, params, x, c_noise)), atol=1e-4
    )


@pytest.mark.parametrize("size", [1, 2, 4])
def test_patches_hold_their_pixels(size):
    x = np.arange(2 * 4 * 8 * 3, dtype=np.float32).reshape(2, 4, 8, 3)
    tokens = np.asarray(patchify(jnp.asarray(x), size))
    expected = [x[:, r : r + size, c : c + size].reshape(2, -1) for r in range(0, 4, size) for c in range(0, 8, size)]
    np.testing.assert_array_equal(tokens, np.stack(expected, axis=1))
    np.testing.assert_array_equal(unpatchify(jnp.asarray(tokens), size, (4, 8, 3)), x)


def test_adaln_zero_starts_as_the_identity():
    """With the gates at zero, the head sees each patch alone: output patch k depends on input patch k, and on no
    other.
    """
    apply, params = initial(NETWORKS["dit"])
    params["outer"]["kernel"] = jax.random.normal(jax.random.key(0), params["outer"]["kernel"].shape)
    jacobian = jax.jit(jax.jacobian(lambda x: apply(params, x[None], jnp.zeros(1))[0]))(
        jax.random.normal(jax.random.key(1), (8, 8, 1))
    )
    influence = np.abs(np.asarray(jacobian)).reshape(4, 2, 4, 2, 4, 2, 4, 2).sum(axis=(1, 3, 5, 7)).reshape(16, 16)
    assert (np.diag(influence) > 0).all()
    assert np.count_nonzero(influence) == 16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_norm_against_numpy(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(30.0, 2.0, (3, 5, 16)), dtype)
    scale, shift = rng.normal(size=(2, 3, 16)).astype(np.float32)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    expected = exact * (1 + scale[:, None]) + shift[:, None]
    y = layer_norm(x, jnp.asarray(scale), jnp.asarray(shift))
    assert y.dtype == dtype
    tolerance = 1e-4 if dtype == jnp.float32 else 2.0**-8
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (16, 4), (144, 24), (160, 32), (2, 1)])
def test_group_norm_against_numpy(channels, groups):
    x = (
        np.random.default_rng(0).normal(300.0, 1.0, (2, 4, 4, channels)).astype(np.float32)
    )  # E[x^2] - E[x]^2 would fail here
    exact = x.astype(np.float64).reshape(2, 16, groups, channels // groups)
    exact = (exact - exact.mean((1, 3), keepdims=True)) / exact.std((1, 3), keepdims=True)
    norm = group_norm(channels, dtype=jnp.float32, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(norm(jnp.asarray(x)), exact.reshape(x.shape), atol=1e-3)


@pytest.mark.parametrize("sides", [(7,), (4, 6), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_group_norm_and_its_derivatives_are_flax_s(sides, dtype):
    keys = jax.random.split(jax.random.key(0), 4)
    x, tangent = (2 * jax.random.normal(key, (3, *sides, 12)).astype(dtype) + 1 for key in keys[:2])
    ours = group_norm(12, groups=3, dtype=dtype, rngs=nnx.Rngs(0))
    theirs = nnx.GroupNorm(12, 3, dtype=dtype, use_fast_variance=False, rngs=nnx.Rngs(0))
    for name, key in zip(("scale", "bias"), keys[2:], strict=True):
        value = jax.random.normal(key, (12,))
        getattr(ours, name)[...] = getattr(theirs, name)[...] = value

    @jax.jit
    def derivatives(x, tangent):
        def value(x, norm):
            return jnp.sum(jnp.sin(norm(x).astype(jnp.float32)))

        pushed = [jax.jvp(norm, (x,), (tangent,)) for norm in (ours, theirs)]
        return *pushed, [jax.grad(value)(x, norm) for norm in (ours, theirs)]

    found, expected, slopes = derivatives(x, tangent)
    tolerance = 2e-5 if dtype == jnp.float32 else 2.0**-5
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(*(np.asarray(v, np.float32) for v in (a, b)), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(*(np.asarray(v, np.float32) for v in slopes), rtol=tolerance, atol=10 * tolerance)


def test_resampling():
    x = jnp.arange(2.0 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    np.testing.assert_array_equal(upsample(x), np.kron(x, np.ones((1, 2, 2, 1))))
    np.testing.assert_array_equal(downsample(x)[:, 1, 2], np.asarray(x)[:, 2:4, 4:6].mean((1, 2)))


@every_network
def test_dropout_follows_its_key(make):
    apply, params, x, c_noise = example(make)
    without, _ = random_params(make, num_classes=3)
    a, again, b = (call(apply, params, x, c_noise, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, again)
    assert relative(a, b) > 0.01
    np.testing.assert_allclose(call(apply, params, x, c_noise), call(without, params, x, c_noise), atol=1e-6)


def _mlp_block(dropout):
    return (
        MLPBlock(8, dropout, dtype=jnp.float32, rngs=nnx.Rngs(0)),
        jnp.ones((2, 8)),
        (jnp.ones((2, 8)), jnp.ones((2, 8))),
    )


def _res_block(dropout):
    return (
        ResBlock(4, 4, 8, 0, dropout, dtype=jnp.float32, rngs=nnx.Rngs(0)),
        jnp.ones((2, 4, 4, 4)),
        (jnp.ones((2, 8)),),
    )


def _dit_block(dropout):
    modulation = [
        jnp.ones((2, 8)) * m for m in (1, 1, 0, 1, 1, 1)
    ]  # first gate shut: nothing non-linear follows a mask
    return DiTBlock(8, 2, dropout, dtype=jnp.float32, rngs=nnx.Rngs(0)), jnp.ones((2, 3, 8)), (modulation,)


@pytest.mark.parametrize("make", [_mlp_block, _res_block, _dit_block])
def test_dropout_keeps_the_mean(make):
    """Only linear maps follow the masks in these blocks, so the mean over keys is the output without dropout."""
    block, x, args = make(0.4)
    graphdef, state = nnx.split(block)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + 0.3 * rng.standard_normal(p.shape).astype(np.float32), nnx.to_pure_dict(state))
    x = x + rng.standard_normal(x.shape).astype(np.float32)

    def run(key):
        return nnx.merge(graphdef, params)(x, *args, key)

    keys = jax.random.split(jax.random.key(4), 4000)
    exact, draws = jax.jit(lambda: (run(None), jax.vmap(run)(keys)))()
    draws = np.asarray(draws)
    assert np.std(draws, axis=0).max() > 0.05
    error = np.abs(draws.mean(axis=0) - exact) / (draws.std(axis=0) / np.sqrt(len(keys)) + 1e-5)
    assert error.max() < 5.0


@every_network
def test_jvp_against_finite_differences(make):
    apply, params, x, c_noise = example(make)
    v = jax.random.normal(jax.random.key(7), x.shape)
    d = jnp.linspace(0.05, 0.1, 5)  # small, for the embedding turns by 32 rad per unit of c_noise

    def along(h):
        return np.asarray(call(apply, params, x + h * v, c_noise + h * d), np.float64)

    h = 2e-2
    numerical = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    _, tangent = jax.jit(lambda: jax.jvp(partial(apply, params), (x, c_noise), (v, d)))()
    assert relative(np.asarray(tangent), numerical) < 1e-3


@partial(jax.jit, static_argnums=0)
def gradient(apply, params, x, c_noise):
    return jax.grad(lambda p: jnp.sum(jnp.sin(apply(p, x, c_noise, key=jax.random.key(5)))))(params)


@pytest.mark.parametrize("remat", ["blocks", "products"])
def test_computing_activations_again_changes_no_gradient(remat):
    apply, params, x, c_noise = example(NETWORKS["dit"])
    again = split(nnx.eval_shape(lambda: NETWORKS["dit"](rngs=OneKey(), num_classes=3, dropout=0.3, remat=remat)))[0]

    ours, plain = jax.device_get([gradient(of, params, x, c_noise) for of in (again, apply)])
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5 * largest), ours, plain)


@pytest.mark.parametrize("name", ["unet", "dit", "ncsnpp"])
def test_less_is_kept_for_the_backward_pass(name):
    """Numbers kept, beside the weights: all activations, those of products and convolutions, and the blocks' inputs
    alone.
    """
    _, params, x, c_noise = example(NETWORKS[name])

    def kept(remat):
        apply = split(nnx.eval_shape(lambda: NETWORKS[name](rngs=OneKey(), num_classes=3, dropout=0.3, remat=remat)))[0]
        _, pull = jax.eval_shape(lambda p: jax.vjp(lambda q: apply(q, x, c_noise, key=jax.random.key(5)), p), params)
        return sum(leaf.size for leaf in jax.tree.leaves(pull)) - sum(leaf.size for leaf in jax.tree.leaves(params))

    everything, products, blocks = (kept(remat) for remat in ("none", "products", "blocks"))
    assert blocks < 0.8 * products and products < 0.8 * everything


@every_network
def test_bfloat16_computes_near_float32(make):
    apply, params, x, c_noise = example(make)
    options = {"num_classes": 3, "dropout": 0.3, "dtype": "bfloat16"}
    low, shapes = split(nnx.eval_shape(lambda: make(rngs=OneKey(), **options)))
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(shapes))
    y = call(low, params, x, c_noise)
    assert y.dtype == jnp.float32
    assert 2.0**-12 < relative(y, call(apply, params, x, c_noise)) < 2.0**-5


def gaussian_denoiser(x, sigma, mean, std):
    """E[x_0 | x_0 + sigma noise = x] for x_0 ~ N(mean, std^2), per coordinate."""
    return (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)


@pytest.mark.parametrize(("name", "tolerance"), [("mlp", 0.08), ("unet", 0.1), ("dit", 0.08)])
def test_network_learns_the_denoiser_of_a_gaussian(name, tolerance):
    """300 Adam steps on E[x_0 | x], closed form, whose mean and spread differ from coordinate to coordinate.

    A network blind to c_noise stays above 0.12: measured.
    """
    apply, params = initial(NETWORKS[name], **({"width": 64} if name == "mlp" else {}))
    shape = NETWORKS[name].keywords["shape"]
    grid = np.linspace(-1.0, 1.0, np.prod(shape), dtype=np.float32).reshape(shape)
    mean, std = jnp.asarray(grid)[None], jnp.asarray(0.6 + 0.4 * np.cos(3 * grid))[None]

    def batch(key, n):
        level, data, noise = jax.random.split(key, 3)
        log_sigma = jax.random.uniform(level, (n,), minval=-2.0, maxval=2.0)
        sigma = jnp.exp(log_sigma).reshape(n, *[1] * grid.ndim)
        x = mean + std * jax.random.normal(data, (n, *shape))
        x = x + sigma * jax.random.normal(noise, x.shape)
        return x / jnp.sqrt(1 + sigma**2), log_sigma / 4, gaussian_denoiser(x, sigma, mean, std)

    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, 300))

    @jax.jit
    def step(params, state, key):
        x, c_noise, target = batch(key, 256 if name == "mlp" else 64)
        gradient = jax.grad(lambda p: jnp.mean((apply(p, x, c_noise) - target) ** 2))(params)
        update, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, update), state

    state = optimizer.init(params)
    for key in jax.random.split(jax.random.key(0), 300):
        params, state = step(params, state, key)
    x, c_noise, target = batch(jax.random.key(1), 500)
    assert relative(call(apply, params, x, c_noise), target) < tolerance


def with_random_weights(make, seed=0):
    """The module with random numbers for weights: layers that start at zero would hide what comes before them."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(rngs=OneKey())))
    rng = np.random.default_rng(seed)
    return nnx.merge(
        graphdef, jax.tree.map(lambda p: jnp.asarray(0.4 * rng.standard_normal(p.shape), jnp.float32), state)
    )


def dense(layer, x):
    return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])


def silu(x):
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("labels", [None, [2, 0, 3]])
def test_condition_against_numpy(labels):
    condition = with_random_weights(partial(Condition, 8, 3))
    c_noise = np.float32([-1.0, 0.2, 1.5])
    h = dense(condition.inner, np.asarray(noise_embedding(jnp.asarray(c_noise))))
    h = h + np.asarray(condition.labels[...])[[3, 3, 3] if labels is None else labels]
    found = jax.jit(condition)(jnp.asarray(c_noise), None if labels is None else jnp.asarray(labels))
    np.testing.assert_allclose(found, silu(dense(condition.outer, silu(h))), rtol=1e-4, atol=1e-5)


def test_the_perceptron_against_numpy():
    network = with_random_weights(partial(MLP, (3,), width=8, depth=2))
    x, c_noise = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32), jnp.linspace(-1.0, 1.0, 5)
    modulation = np.split(dense(network.modulation, np.asarray(network.condition(c_noise, None))), 4, axis=-1)
    h = dense(network.inner, x)
    for block, scale, shift in zip(network.blocks.values(), modulation[::2], modulation[1::2], strict=True):
        h = h + dense(block.outer, silu(dense(block.inner, silu(h)) * (1 + scale) + shift))
    np.testing.assert_allclose(
        jax.jit(network)(jnp.asarray(x), c_noise), dense(network.outer, silu(h)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("outputs, heads", [(4, 0), (6, 0), (6, 2)])
def test_a_residual_block_is_its_formula(outputs, heads):
    block = with_random_weights(partial(ResBlock, 4, outputs, 8, heads, 0.0, dtype=jnp.float32))
    x, embedding = jax.random.normal(jax.random.key(0), (2, 4, 4, 4)), jax.random.normal(jax.random.key(1), (2, 8))
    scale, shift = np.split(dense(block.modulation, np.asarray(embedding))[:, None, None], 2, axis=-1)
    h = block.conv1(jnp.asarray(silu(np.asarray(block.norm1(x)))))
    h = block.conv2(jnp.asarray(silu(np.asarray(block.norm2(h)) * (1 + scale) + shift)))
    h = h + (x if outputs == 4 else dense(block.shortcut, np.asarray(x)))
    if heads:
        tokens = block.attention.norm(h).reshape(2, 16, outputs)
        h = h + block.attention.attention(tokens).reshape(h.shape)
    np.testing.assert_allclose(jax.jit(block)(x, embedding, None), h, rtol=1e-4, atol=1e-4)


def test_a_transformer_block_is_its_formula():
    block = with_random_weights(partial(DiTBlock, 8, 2, 0.0, dtype=jnp.float32))
    h = jax.random.normal(jax.random.key(0), (2, 5, 8))
    modulation = jax.random.normal(jax.random.key(1), (6, 2, 8))
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation
    expected = h + gate1[:, None] * block.attention(layer_norm(h, scale1, shift1))
    inside = jax.nn.gelu(jnp.asarray(dense(block.inner, np.asarray(layer_norm(expected, scale2, shift2)))))
    expected = expected + gate2[:, None] * dense(block.outer, np.asarray(inside))
    np.testing.assert_allclose(jax.jit(block)(h, list(modulation), None), expected, rtol=1e-4, atol=1e-4)


def test_positions_are_sines_and_cosines_of_row_and_column():
    table = sincos_positions([3, 5], 10)
    w = 1e4 ** (-np.arange(2) / 2)
    for place in range(15):
        row, column = divmod(place, 5)
        expected = np.concatenate([np.sin(row * w), np.cos(row * w), np.sin(column * w), np.cos(column * w), [0, 0]])
        np.testing.assert_allclose(table[place], expected, atol=1e-6)


@pytest.mark.parametrize("shape, fans", [((200, 400), 300), ((3, 3, 40, 80), 9 * 60)])
def test_weights_start_uniform_of_the_variance_over_the_mean_fan(shape, fans):
    w = np.asarray(initialiser(0.7)(jax.random.key(0), shape, jnp.float32), float)
    limit = np.sqrt(3 * 0.7 / fans)
    assert 0.999 * limit < np.abs(w).max() <= limit * (1 + 1e-6)
    assert abs(w.mean()) < 5 * w.std() / np.sqrt(w.size)
    np.testing.assert_allclose(w.var(), 0.7 / fans, rtol=0.05)
    assert not initialiser(0.0)(jax.random.key(0), shape, jnp.float32).any()


def test_linear_keeps_leading_axes():
    layer = Linear(4, 6, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(layer(jnp.asarray(x)), x @ np.asarray(layer.kernel[...]), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(MLP, (8, 8, 1)), "use UNet or DiT for images"),
        (partial(MLP, (2,), depth=0), "depth must be a positive whole number; it is 0"),
        (partial(UNet, (2,)), "use the MLP for vectors"),
        (
            partial(UNet, (8, 8, 1), channel_mults=(1, 2, 2, 2, 2)),
            "5 channel_mults halve 8x8 to less than one place: shorten",
        ),
        (partial(UNet, (3, 2, 2, 2, 1)), "series .* images .* and volumes, not \\(3, 2, 2, 2, 1\\)"),
        (partial(NCSNpp, (8, 6, 1), channel_mults=(1, 2, 2)), "divisible by 4; it is 8x6"),
        (partial(UNet, (8, 8, 1), channel_mults=()), "channel_mults is empty"),
        (partial(UNet, (8, 8, 1), attention=(16, 4)), "resolution 16 does not occur: choose among 8, 4"),
        (partial(UNet, (8, 8, 1), width=8, heads=3), "heads=3 does not divide .* 16 channels"),
        (partial(DiT, (3,)), "use the MLP for vectors"),
        (partial(DiT, (8, 8, 1), width=32, heads=5), "heads=5 does not divide .* 32"),
        (
            partial(DiT, (8, 8, 1), patch_size=3),
            "patch_size=3 does not divide the size 8x8: choose a divisor of every side",
        ),
        (partial(DiT, (8, 8, 1), patch_size=0), "patch_size must be a positive whole number; it is 0"),
    ],
)
def test_bad_options_raise_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        nnx.eval_shape(lambda: make(rngs=OneKey()))
    assert "\n" not in str(error.value)
