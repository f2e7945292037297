"""Cross-entropy without logits against optax's with them, and against the authors' arithmetic."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.kernels.checks import lowered_for, temporary_bytes
from tinker import kernels, train
from tinker.kernels.large_vocabulary import reference
from tinker.numerics import UserError

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "cce.json"
RNG = np.random.default_rng(0)
N, V, D = 12, 40, 6
HIDDEN = RNG.normal(size=(3, 4, D)).astype(np.float32)
WEIGHT = RNG.normal(size=(V, D)).astype(np.float32)
BIAS = np.where(np.arange(V) == 7, -np.inf, RNG.normal(size=V)).astype(np.float32)
LABELS = RNG.choice([2, 3, 5, 30], (3, 4))  # several tokens of one label
WHERE = RNG.random((3, 4)) < 0.7


def close(found, expected, tolerance=2e-6):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * abs(expected).max())


def gradients(fn, **options):
    """The loss per token, and the gradients of a sum of it with unequal weights."""

    def total(hidden, weight, bias, labels):
        loss = fn(hidden, weight, labels, bias=bias, **options)
        return (loss * jnp.cos(jnp.arange(loss.size)).reshape(loss.shape)).sum(), loss

    return jax.value_and_grad(total, (0, 1, 2), has_aux=True)


def by_optax(hidden, weight, labels, *, bias, softcap=None, z_loss=0.0, where=None):
    logits = hidden @ weight.T + bias
    logits = (
        logits
        if softcap is None
        else jnp.where(bias == -jnp.inf, -jnp.inf, softcap * jnp.tanh(logits / softcap))
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    loss += z_loss * jax.nn.logsumexp(logits, -1) ** 2
    return loss if where is None else loss * where


@pytest.mark.parametrize(
    "options",
    [{}, {"softcap": 2.0, "z_loss": 0.1}, {"where": WHERE, "z_loss": 1e-3}],
    ids=["plain", "softcap and z-loss", "where"],
)
def test_it_is_optaxs_of_the_logits(options):
    finite = np.where(np.isfinite(BIAS), BIAS, 0)
    bias = BIAS if "softcap" in options else finite
    labels = np.where(options.get("where", True), LABELS, 10**9)
    args = HIDDEN, WEIGHT, bias
    (_, loss), found = jax.jit(gradients(kernels.linear_cross_entropy, **options))(*args, labels)
    (_, value), expected = jax.jit(gradients(by_optax, **options))(*args, LABELS)
    assert loss.dtype == jnp.float32
    close(loss, value)
    for a, b in zip(found, expected):
        close(a, np.where(np.isfinite(b), b, 0))


def test_the_equation_in_float64_and_its_slope():
    """Sums of exponentials one by one, and a finite difference; the reference is held to them."""
    args = [np.asarray(a, np.float64) for a in (HIDDEN, WEIGHT, BIAS)]
    v = [RNG.normal(size=a.shape) for a in args]
    options = {"softcap": 3.0, "z_loss": 0.2}
    expected = np.zeros(LABELS.shape)
    for at in np.ndindex(LABELS.shape):
        scores = [3 * np.tanh((args[0][at] @ w + b) / 3) for w, b in zip(*args[1:]) if b > -np.inf]
        own = 3 * np.tanh((args[0][at] @ args[1][LABELS[at]] + args[2][LABELS[at]]) / 3)
        lse = np.log(np.exp(scores).sum())
        expected[at] = -np.log(np.exp(own) / np.exp(scores).sum()) + 0.2 * lse**2
    with jax.enable_x64(True):
        run = jax.jit(gradients(kernels.linear_cross_entropy, **options))
        (_, loss), gradient = run(*args, LABELS)
        assert loss.dtype == jnp.float64
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        plain = reference.cross_entropy(*args[:2], LABELS, bias=args[2], **options)
        np.testing.assert_allclose(plain, expected, rtol=1e-12)
        up, down = ([a + e * b for a, b in zip(args, v)] for e in (1e-6, -1e-6))
        rise = (run(*up, LABELS)[0][0] - run(*down, LABELS)[0][0]) / 2e-6
        np.testing.assert_allclose(rise, sum(map(np.vdot, gradient, v)), rtol=1e-7)


def test_order_of_the_vocabulary_and_of_its_axis_do_not_matter():
    order = RNG.permutation(V)

    def run(weight, bias, labels, **options):
        (_, loss), (dx, dw, db) = gradients(kernels.linear_cross_entropy, **options)(
            HIDDEN, weight, bias, labels
        )
        return loss, dx, dw, db

    loss, dx, dw, db = jax.jit(run)(WEIGHT, BIAS, LABELS)
    found = jax.jit(run)(WEIGHT[order], BIAS[order], np.argsort(order)[LABELS])
    for a, b in zip(found, (loss, dx, dw[order], db[order])):
        close(a, b)
    turned = jax.jit(lambda *a: run(*a, vocab_axis=1))(WEIGHT.T, BIAS, LABELS)
    for a, b in zip(turned, (loss, dx, dw.T, db)):
        close(a, b)


def test_corners():
    """One token in the vocabulary, no token that counts, labels that are all but certain."""
    run = jax.jit(gradients(kernels.linear_cross_entropy))
    (_, loss), found = run(HIDDEN, WEIGHT[:1], BIAS[:1], np.zeros((3, 4), int))
    assert not np.any(loss) and not any(map(np.any, found))
    nowhere = gradients(kernels.linear_cross_entropy, where=np.zeros((3, 4), bool), z_loss=1.0)
    (_, loss), found = jax.jit(nowhere)(HIDDEN, WEIGHT, BIAS, LABELS)
    assert not np.any(loss) and not any(map(np.any, found))
    # p = 1 - e^-30, which float32 cannot tell from 1; then logits of 1e4, right and wrong
    hidden = np.array([[30.0], [1e4], [-1e4]], np.float32)
    weight, labels = np.array([[1.0], [0.0]], np.float32), np.zeros(3, int)
    (_, loss), (dx, dw, _) = run(hidden, weight, np.zeros(2, np.float32), labels)
    np.testing.assert_allclose(loss, [np.exp(-30), 0.0, 1e4], rtol=1e-6)
    np.testing.assert_allclose(dx[:, 0], [-np.exp(-30), 0.0, -np.cos(2)], rtol=1e-6)
    np.testing.assert_allclose(dw[:, 0], [1e4 * np.cos(2), -1e4 * np.cos(2)], rtol=1e-6)


def test_half_precision_sums_a_frequent_label_in_float32():
    """A thousand tokens of one label: in bfloat16 their sum would stop growing at 256."""
    n = 1000
    hidden = jnp.ones((n, 1), jnp.bfloat16)
    weight = jnp.zeros((300, 1), jnp.bfloat16)
    labels = np.where(np.arange(n) % 10 == 0, 7, 3)
    dw = jax.jit(jax.grad(lambda h, w: kernels.linear_cross_entropy(h, w, labels).sum(), 1))(
        hidden, weight
    )
    assert dw.dtype == jnp.bfloat16
    expected = np.full(300, n / 300)
    expected[[3, 7]] -= [900, 100]
    np.testing.assert_allclose(np.asarray(dw, np.float64)[:, 0], expected, rtol=0.01)


def test_the_filter_errs_by_its_threshold_and_keeps_the_label():
    n, vocab, eps = 256, 1536, 2.0**-12
    hidden = np.zeros((n, 3), np.float32)
    hidden[:, 0] = RNG.uniform(8, 12, n)
    hidden[:, 1] = RNG.normal(size=n)
    hidden[:5, 2] = 5
    weight = RNG.normal(size=(vocab, 3)).astype(np.float32) * [0, 1, 0]
    weight[:512, 0] = 1  # the likely tokens share a tile
    weight[1030, 2] = 3  # and one token of the last tile is likely in a few rows
    labels = RNG.choice([3, 700], n)
    args = hidden, weight.astype(np.float32)

    def run(eps):
        def total(hidden, weight):
            return kernels.linear_cross_entropy(hidden, weight, labels, filter_below=eps).sum()

        return jax.jit(jax.grad(total, (0, 1)))(*args)

    logits = args[0].astype(np.float64) @ args[1].T
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    seen = np.where(np.arange(vocab) == labels[:, None], 0, p)
    assert seen[:, 512:1024].max() < eps < min(seen[:, :512].max(), seen[:, 1024:].max())
    exact, found = run(None), run(eps)
    skipped = np.delete(np.arange(512, 1024), 700 - 512)
    assert not np.any(found[1][skipped]) and np.abs(exact[1][skipped]).max() > 0
    np.testing.assert_allclose(found[1][:512], exact[1][:512], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1][1024:], exact[1][1024:], rtol=1e-4, atol=1e-5)
    assert (np.abs(found[0] - exact[0]) <= eps * np.abs(args[1][512:1024]).sum(0) + 1e-4).all()
    own = (labels == 700)[:, None] * args[0]  # what is left of a skipped label is its own product
    close(found[1][700], -((1 - p[:, 700:701]) * own).sum(0), 1e-5)


def test_sorting_finds_the_tiles_of_a_shuffled_vocabulary():
    n, vocab, eps = 256, 1536, 2.0**-12
    hidden = RNG.uniform(8, 12, (n, 1)).astype(np.float32)
    likely = RNG.permutation(vocab) < 512
    weight = (likely + RNG.normal(size=vocab) / 100)[:, None].astype(np.float32)
    bias, labels = RNG.normal(size=vocab).astype(np.float32) / 10, RNG.integers(0, vocab, n)

    def run(**options):
        def total(hidden, weight, bias):
            loss = kernels.linear_cross_entropy(hidden, weight, labels, bias=bias, **options)
            return loss.sum()

        return jax.jit(jax.grad(total, (0, 1, 2)))(hidden, weight, bias)

    exact = run()
    found, in_order = run(filter_below=eps, sort=True), run(filter_below=eps)
    skipped = ~likely & ~np.isin(np.arange(vocab), labels)
    assert not np.any(found[1][skipped]) and not np.any(found[2][skipped])
    assert np.all(in_order[1][skipped] != 0) and np.all(in_order[2][skipped] != 0)
    for a, b, c in zip(found, exact, in_order):
        close(a, b, 1e-3)
        close(c, b, 1e-5)


@pytest.mark.parametrize("case", [0, 1])
def test_it_is_the_authors_kernels(case):
    """Their z-loss is made outside of the kernels, from the log-sum-exp and its cotangent."""
    case = json.loads(GOLDEN.read_text())["cases"][case]
    args = [np.float32(case[k]) for k in ("hidden", "weight", "g")]
    labels, bias = np.array(case["labels"]), np.float32(case.get("bias", 0.0)) + np.zeros(16)
    g_lse = np.float32(case.get("g_lse", 0.0))

    def total(hidden, weight, bias):
        options = {"bias": bias, "softcap": case["softcap"]}
        loss = kernels.linear_cross_entropy(hidden, weight, labels, **options)
        both = kernels.linear_cross_entropy(hidden, weight, labels, z_loss=1.0, **options)
        lse = jnp.sqrt(both - loss)
        return (args[2] * loss + g_lse * lse).sum(), (loss, lse)

    run = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))
    gradient, values = run(*args[:2], np.float32(bias))
    for found, name in zip((*values, *gradient), ("loss", "lse", "dhidden", "dweight", "dbias")):
        if name in case:
            close(found, case[name], 1e-5)


def test_the_filter_is_the_authors():
    """Where labels share a tile that is kept, both leave out the same."""
    case = json.loads(GOLDEN.read_text())["filter"]
    assert (case["skipped"], case["blocks"], case["block_of_columns"]) == (1, 2, 512)
    v = np.arange(514)
    weight = np.stack([np.where(v < 512, v / 1024 - 1, 3), 0.1 * np.cos(v)], 1).astype(np.float32)
    labels, g = np.array(case["labels"]), np.float32(case["g"])

    def total(hidden, weight):
        loss = kernels.linear_cross_entropy(hidden, weight, labels, filter_below=case["eps"])
        return g @ loss, loss

    run = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    (dx, dw), loss = run(np.float32(case["hidden"]), weight)
    close(loss, case["loss"])
    assert not np.any(dw[:512])
    close(dw[512:], case["dweight_of_the_last_two"], 1e-5)
    left_out = np.subtract(case["dhidden_unfiltered"], case["dhidden"])
    close(dx, case["dhidden"], 0.1 * np.abs(left_out).max() / np.abs(case["dhidden"]).max())


def test_a_config_names_it_in_place_of_the_logits_loss():
    config = train.default_config()
    config.data = {"source": "text:stdlib", "length": 8}
    config.model = {
        "fn": "tinker.models:ByteLM",
        "inputs": ("tokens",),
        "length": 8,
        "width": 8,
        "depth": 1,
        "heads": 1,
    }
    config.optimizer = {"fn": "optax:sgd", "learning_rate": 0.1}
    config.loss = {"fn": "tinker.losses:cross_entropy", "inputs": ("logits", "targets")}
    tokens = RNG.integers(0, 256, (2, 9))
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    plain = train.build(config)
    config.loss = {
        "fn": "tinker.kernels:linear_cross_entropy",
        "inputs": ("embeddings", "params/model/embed/embedding", "targets"),
    }
    tiled = train.build(config)

    @jax.jit
    def run():
        state = plain.init(jax.random.key(0), batch)
        return [program.loss(state, batch)[0] for program in (plain, tiled)], state

    (expected, found), state = run()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    jax.eval_shape(tiled.train_step, state, batch)


def test_the_pallas_form_lowers_for_a_tpu():
    shape = jax.ShapeDtypeStruct
    args = shape((2, 500, 768), jnp.bfloat16), shape((50257, 768), jnp.bfloat16)

    def gradients(hidden, weight, labels):
        def total(hidden, weight):
            options = {"softcap": 30.0, "filter_below": 2**-12, "implementation": "pallas"}
            return kernels.linear_cross_entropy(hidden, weight, labels, **options).sum()

        return jax.value_and_grad(total, (0, 1))(hidden, weight)

    text = lowered_for("tpu", gradients, *args, shape((2, 500), jnp.int32))
    assert text.count("@tpu_custom_call") == 3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_memory_at_a_vocabulary_of_131072_is_a_twentieth_at_most(dtype):
    shape = jax.ShapeDtypeStruct
    args = shape((8192, 512), dtype), shape((131072, 512), dtype), shape((8192,), jnp.int32)

    def mean(fn):
        return lambda *args: jax.value_and_grad(lambda *a: fn(*a).mean(), (0, 1))(*args)

    used = temporary_bytes(mean(kernels.linear_cross_entropy), *args)
    assert 20 * used < temporary_bytes(mean(reference.cross_entropy), *args)


def test_what_it_refuses():
    with pytest.raises(AssertionError):
        kernels.linear_cross_entropy(HIDDEN, WEIGHT, LABELS[:2])
    with pytest.raises(AssertionError):
        kernels.linear_cross_entropy(HIDDEN, WEIGHT.T, LABELS)
    with pytest.raises(UserError, match="implementation"):
        kernels.linear_cross_entropy(HIDDEN, WEIGHT, LABELS, implementation="triton")
