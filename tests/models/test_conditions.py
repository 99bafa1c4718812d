"""What networks are told: by every kind each row follows its own condition, "nothing" is a row like any other, padding
changes no bit, and what lies beyond a kind is refused or gives NaN.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import AlwaysTold, Augmented, DiT, Embeddings, Label, NCSNpp, Text, UNet, Vector, split
from models.conditions import nothing_rows
from models.dit import DiTBlock
from models.text import text_tokens
from models.unet import GridReading
from tests.models.test_models import NETWORKS, random_params

LENGTH = 12
call = jax.jit(  # compiling is all that takes time
    lambda apply, *args: apply(*args), static_argnums=0, compiler_options={"xla_backend_optimization_level": 0}
)
CAPTIONS = ["a thin one", "six", "a seven", "sex"]


def tokens(captions: list[str], length: int = LENGTH) -> jnp.ndarray:
    return jnp.asarray(np.stack([text_tokens(caption, length) for caption in captions]))


def embeddings(seed: int) -> dict[str, jnp.ndarray]:
    rng = np.random.default_rng(seed)
    mask = jnp.asarray([[True, True, False], [True, False, False], [True, True, True], [False, True, False]])
    return {"embeddings": jnp.asarray(rng.normal(size=(4, 3, 5)), jnp.float32), "mask": mask}


KINDS = {
    "vector": (Vector(3), jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)),
    "text": (Text(LENGTH), tokens(CAPTIONS)),
    "embeddings": (Embeddings(4, 5), embeddings(0)),
}
BAD = {
    "vector": (jnp.zeros((4, 2)), jnp.zeros(4), jnp.zeros((4, 3), int)),
    "text": (jnp.zeros((4, LENGTH + 1), int), jnp.zeros((4, LENGTH)), jnp.zeros(4, int)),
    "embeddings": (
        {"embeddings": jnp.zeros((4, 3, 5))},
        {"embeddings": jnp.zeros((4, 5, 5)), "mask": jnp.ones((4, 5), bool)},
        {"embeddings": jnp.zeros((4, 3, 4)), "mask": jnp.ones((4, 3), bool)},
        {"embeddings": jnp.zeros((4, 3, 5)), "mask": jnp.ones((4, 2), bool)},
        jnp.zeros((4, 3, 5)),
    ),
}
each_kind = pytest.mark.parametrize("name", KINDS)


@pytest.fixture(scope="module")
def networks():
    """Each network with each kind of condition, its weights drawn at random, and what it gives for four rows alike."""
    found = {}

    def of(network: str, name: str):
        if (network, name) not in found:
            make = NETWORKS[network]
            apply, params = random_params(make, kind=KINDS[name][0])
            x = jnp.tile(
                jax.random.normal(jax.random.key(1), (1, *make.keywords["shape"])),
                (4,) + (1,) * len(make.keywords["shape"]),
            )
            found[network, name] = apply, params, x, jnp.zeros(4)
        return found[network, name]

    return of


def flat(y) -> np.ndarray:
    return np.asarray(y).reshape(len(y), -1)


# Every kind with one network, every network with one kind, and both ways of a text to a grid.
PAIRS = (("mlp", "vector"), ("mlp", "embeddings"), ("ncsnpp", "vector"), ("unet", "text"), ("dit", "embeddings"))


@pytest.mark.parametrize("network, name", PAIRS)
def test_each_row_follows_its_own_condition_and_nothing_is_one(networks, network, name):
    apply, params, x, c_noise = networks(network, name)
    kind, cond = KINDS[name]
    told = flat(call(apply, params, x, c_noise, cond))
    length = {"vector": 3, "text": LENGTH, "embeddings": 3}[name]
    row = jax.tree.map(lambda nothing: nothing[:length], kind.nothing())  # padding outside is as long as one likes
    none = flat(call(apply, params, x, c_noise, jax.tree.map(lambda nothing: jnp.asarray([nothing] * 4), row)))
    mixed = jax.tree.map(lambda rows, nothing: rows.at[2].set(nothing), cond, row)
    mixed = flat(call(apply, params, x, c_noise, mixed))
    assert np.isfinite(told).all() and np.isfinite(none).all()
    np.testing.assert_array_equal(none, np.tile(none[:1], (4, 1)))
    np.testing.assert_allclose(mixed[[0, 1, 3]], told[[0, 1, 3]], atol=1e-5)
    np.testing.assert_allclose(mixed[2], none[2], atol=1e-5)
    if network == "mlp":
        np.testing.assert_array_equal(none, flat(call(apply, params, x, c_noise, None)))
    rows = np.concatenate([told, none[:1]])
    for i in range(5):
        for j in range(i):
            assert np.linalg.norm(rows[i] - rows[j]) > 1e-3 * np.linalg.norm(rows[i])


@each_kind
def test_of_another_shape_or_type_it_is_refused(networks, name):
    apply, params, x, c_noise = networks("mlp", name)
    for bad in BAD[name]:
        with pytest.raises(ValueError, match=r"must (hold|be)|shorten"):
            apply(params, x, c_noise, bad)
    apply, params = random_params(NETWORKS["mlp"])
    with pytest.raises(ValueError, match="without conditions"):
        apply(params, x, c_noise, KINDS[name][1])


def test_text_reaches_a_grid_through_its_tokens_too_from_a_start_at_zero(networks):
    apply, params, x, c_noise = networks("unet", "text")

    def without(*names):
        def cut(path, leaf):
            return 0 * leaf if {getattr(part, "key", "") for part in path} & set(names) else leaf

        return jax.tree.map_with_path(cut, params)

    told = flat(call(apply, without("whole"), x, c_noise, tokens(CAPTIONS)))
    assert np.linalg.norm(told[1] - told[3]) > 1e-4 * np.linalg.norm(told[1])  # six and sex
    deaf = flat(call(apply, without("whole", "reading"), x, c_noise, tokens(CAPTIONS)))
    np.testing.assert_allclose(deaf, deaf[:1].repeat(4, axis=0), atol=1e-5)
    for block in (
        DiTBlock(8, 2, 0.0, 16, dtype=jnp.float32, rngs=nnx.Rngs(0)),
        GridReading(8, 16, 2, dtype=jnp.float32, rngs=nnx.Rngs(0)),
    ):
        attention = block.reading if isinstance(block, DiTBlock) else block.attention
        assert not attention.out.kernel[...].any() and attention.q.kernel[...].any()


def test_padding_changes_no_bit(networks):
    apply, params, x, c_noise = networks("mlp", "text")
    whole = call(apply, params, x, c_noise, tokens(CAPTIONS))
    np.testing.assert_array_equal(call(apply, params, x, c_noise, tokens(CAPTIONS, 10)), whole)
    apply, params, x, c_noise = networks("dit", "embeddings")
    cond = embeddings(0)
    whole = call(apply, params, x, c_noise, cond)
    longer = {name: jnp.pad(rows, [(0, 0), (0, 1)] + [(0, 0)] * (rows.ndim - 2)) for name, rows in cond.items()}
    np.testing.assert_array_equal(call(apply, params, x, c_noise, longer), whole)
    filled = jnp.where(longer["mask"][:, :, None], longer["embeddings"], jnp.nan)
    np.testing.assert_array_equal(call(apply, params, x, c_noise, {**longer, "embeddings": filled}), whole)


def test_the_order_of_bytes_matters_and_no_byte_is_taken_for_another(networks):
    apply, params, x, c_noise = networks("mlp", "text")
    y = flat(call(apply, params, x, c_noise, tokens(["on", "no", "ono", "noo"])))
    assert all(np.linalg.norm(y[i] - y[j]) > 1e-3 * np.linalg.norm(y[i]) for i in range(4) for j in range(i))
    wrong = tokens(CAPTIONS).at[0, 1].set(256).at[1, 0].set(-2)
    assert np.isnan(flat(call(apply, params, x, c_noise, wrong))).all(axis=1).tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match=r"13 bytes, and at most 12 are read"):
        text_tokens("ä" + 11 * "b", LENGTH)


def test_a_vector_with_a_hole_gives_nan_and_gradients_pass_nothing(networks):
    apply, params, x, c_noise = networks("mlp", "vector")
    cond = KINDS["vector"][1].at[1, 2].set(jnp.nan).at[2].set(jnp.nan)
    y = flat(call(apply, params, x, c_noise, cond))
    assert np.isnan(y).any(axis=1).tolist() == [False, True, False, False]
    whole = cond.at[1, 2].set(0.0)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(apply(p, x, c_noise, whole) ** 2)))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", [*KINDS, "label"])
def test_what_was_never_trained_on_nothing_refuses_it(networks, name):
    kind, cond = {**KINDS, "label": (Label(3), jnp.asarray([0, 1, 2, 0]))}[name]
    options = {"num_classes": 3} if name == "label" else {"kind": kind}
    apply, params = random_params(NETWORKS["mlp"], **options)
    always, x = AlwaysTold(apply, kind), jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"train with --config\.train\.cond_dropout=0\.1"):
        always(params, x, jnp.zeros(4))
    np.testing.assert_array_equal(
        call(always, params, x, jnp.zeros(4), cond), call(apply, params, x, jnp.zeros(4), cond)
    )
    nothing = jax.tree.map(
        lambda rows, none: rows.at[1].set(none[1][: len(rows[1])] if rows.ndim > 1 else none[1]),
        cond,
        nothing_rows(kind, 4),
    )
    y = flat(call(always, params, x, jnp.zeros(4), nothing))
    assert np.isnan(y).all(axis=1).tolist() == [False, True, False, False]


def test_the_table_of_labels_lies_where_stored_checkpoints_have_it():
    for network in ("mlp", "ncsnpp"):
        params = random_params(NETWORKS[network], num_classes=3)[1]
        table = params["labels"] if network == "ncsnpp" else params["condition"]["labels"]
        assert table.shape[0] == 4
        if network == "mlp":
            assert set(params["condition"]) == {"inner", "outer", "labels"}
    with pytest.raises(ValueError, match="give it num_classes"):
        NETWORKS["mlp"](kind=Label(3), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("network", ["mlp", "unet"])
def test_a_vector_that_is_missing_is_not_the_vector_of_zeros(networks, network):
    apply, params, x, c_noise = networks(network, "vector")
    rows = jnp.asarray([[jnp.nan] * 3, [0.0] * 3, [jnp.nan] * 3, [0.0] * 3])
    missing, zeros, *_ = flat(call(apply, params, x, c_noise, rows))
    assert np.isfinite(missing).all() and np.abs(missing - zeros).max() > 1e-3 * np.abs(zeros).max()


@pytest.mark.parametrize(("network", "classes"), [("unet", 3), ("dit", 0), ("ncsnpp", 3)])
def test_how_images_were_augmented_is_read_and_none_is_what_it_is_without(network: str, classes: int) -> None:
    made = {
        "unet": lambda **given: UNet((4, 4, 1), width=8, channel_mults=(1,), blocks=1, heads=1, **given),
        "dit": lambda **given: DiT((4, 4, 1), width=8, depth=1, heads=1, **given),
        "ncsnpp": lambda **given: NCSNpp((4, 4, 1), width=8, channel_mults=(1,), blocks=1, attention=(), **given),
    }[network]
    apply, params = split(made(augmented=True, num_classes=classes, rngs=nnx.Rngs(0)))
    plain, same = split(made(num_classes=classes, rngs=nnx.Rngs(0)))
    x, c = jnp.ones((3, 4, 4, 1)), jnp.zeros(3)
    cond = jnp.array([0, 2, 3]) if classes else None
    params, same = (
        jax.tree.map(lambda w: w + 0.3 * jnp.sin(jnp.arange(w.size, dtype=float)).reshape(w.shape), tree)
        for tree in (params, same)
    )  # no weight is 0
    apply = jax.jit(apply)
    y = apply(params, x, c, cond)
    np.testing.assert_array_equal(y, jax.jit(plain)(same, x, c, cond))
    labels = jnp.zeros((3, 9)).at[1, 4].set(1.0)
    told = apply(params, x, c, Augmented(cond, labels))
    np.testing.assert_allclose(told[0], y[0], rtol=1e-6)
    assert float(jnp.abs(told[1] - y[1]).max()) > 1e-3
    with pytest.raises(ValueError, match="build it with augmented"):
        plain(same, x, c, Augmented(cond, labels))
