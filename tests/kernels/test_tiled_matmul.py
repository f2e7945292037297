"""Tiled reductions of a product against loops over its entries, in every form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kernels.checks import lowered_for, temporary_bytes
from tinker import kernels
from tinker.kernels.tiled_matmul import pallas_tpu, reference, xla
from tinker.numerics import UserError

RNG = np.random.default_rng(0)
N, M, D = 13, 29, 5
X, Y = RNG.normal(size=(N, D)).astype(np.float32), RNG.normal(size=(M, D)).astype(np.float32)
BIAS = np.where(np.arange(M) % 7 == 3, -np.inf, RNG.normal(size=M)).astype(np.float32)
EXCLUDE = np.where(np.arange(N) % 4 == 0, -1, RNG.integers(0, M, N)).astype(np.int32)
G = RNG.normal(size=N).astype(np.float32)
ALL = {"bias": BIAS, "exclude": EXCLUDE, "softcap": 1.5}


def by_entry(x, y, g, *, kind="logsumexp", bias=None, exclude=None, softcap=None):
    """The equation one entry at a time: values, and what g times them changes by."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    value = np.zeros(len(x))
    dx, dy, db = np.zeros_like(x), np.zeros_like(y), np.zeros(len(y))
    for i in range(len(x)):
        there, scores, slopes = [], [], []
        for j in range(len(y)):
            if (exclude is not None and exclude[i] == j) or (
                bias is not None and bias[j] == -np.inf
            ):
                continue
            u = float(np.dot(x[i], y[j])) + (0.0 if bias is None else float(bias[j]))
            there.append(j)
            scores.append(u if softcap is None else softcap * np.tanh(u / softcap))
            slopes.append(1.0 if softcap is None else 1 / np.cosh(u / softcap) ** 2)
        if kind == "softplus":
            value[i] = sum(np.log(1 + np.exp(z)) for z in scores)
            weights = [1 / (1 + np.exp(-z)) for z in scores]
        else:
            total = sum(np.exp(z) for z in scores)
            value[i] = np.log(total) if there else -np.inf
            weights = [np.exp(z) / total for z in scores]
        for j, w, slope in zip(there, weights, slopes):
            dx[i] += g[i] * w * slope * y[j]
            dy[j] += g[i] * w * slope * x[i]
            db[j] += g[i] * w * slope
    return value, dx, dy, db


def assert_close(found, expected, tolerance=2e-6):
    """Within a share of the largest entry, -inf where that is expected."""
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == jnp.float32
        scale = np.abs(b, where=np.isfinite(b), out=np.ones_like(b)).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


def both(form, options, *, backward=None, **static):
    """Value and gradients of a form, in its own order of arguments."""
    bias, exclude = options.get("bias"), options.get("exclude")
    rest = {k: v for k, v in options.items() if k not in ("bias", "exclude")} | static

    def run(x, y, g):
        value = form.forward(x, y, bias, exclude, **rest)
        return value, *form.backward(x, y, bias, exclude, value, g, **rest, **(backward or {}))

    return run


def test_tiles_of_any_size_are_the_loops_sums():
    nothing = {"kind": "logsumexp", "bias": np.full(M, -np.inf, np.float32)}
    cases = [
        ({"kind": "logsumexp", **ALL}, (4, 8)),
        ({"kind": "softplus", **ALL}, (5, 29)),
        ({"kind": "logsumexp"}, (13, 6)),
        (nothing, (13, 29)),
    ]
    run = jax.jit(lambda *a: [both(xla, c, tile=tile)(*a) for c, tile in cases])
    for (case, _), found in zip(cases, run(X, Y, G)):
        count = 4 if "bias" in case else 3
        assert count == 4 or found[3] is None
        assert_close(found[:count], by_entry(X, Y, G, **case)[:count])


def test_one_row_or_one_column():
    cases = [("logsumexp", 1, 9), ("softplus", 9, 1), ("logsumexp", 1, 1)]
    cases = [
        ({"kind": kind, "bias": BIAS[:m], "exclude": EXCLUDE[:n] % 2}, X[:n], Y[:m], G[:n])
        for kind, n, m in cases
    ]
    run = jax.jit(lambda: [both(xla, case)(*args) for case, *args in cases])
    for (case, *args), found in zip(cases, run()):
        assert_close(found, by_entry(*args, **case))


def logsumexps(x, y, bias, exclude, g):
    return kernels.matmul_logsumexp(x, y, bias=bias, exclude=exclude, softcap=3.0) @ g


def softplus_sums(x, y, bias, exclude, g):
    return kernels.matmul_softplus_sum(x, y, bias=bias[0]) @ g


def plain_logsumexps(x, y, bias, exclude, g):
    return reference.logsumexp(x, y, bias=bias, exclude=exclude, softcap=3.0) @ g


def plain_softplus_sums(x, y, bias, exclude, g):
    return reference.softplus_sum(x, y, bias=bias[0]) @ g


def arguments(n, m, d):
    x, y, bias, g = (RNG.normal(size=s) for s in ((n, d), (m, d), m, n))
    bias[5] = -np.inf
    return x, y, bias, RNG.integers(0, m, n), g


@pytest.mark.parametrize(
    "ours, plain", [(logsumexps, plain_logsumexps), (softplus_sums, plain_softplus_sums)]
)
def test_the_functions_are_the_reference_in_float64(ours, plain):
    args = arguments(600, 1100, 3)
    with jax.enable_x64(True):
        run = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))
        expected = jax.jit(jax.value_and_grad(plain, (0, 1, 2)))(*args)
        found, gradient = run(*args)
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, expected[0], rtol=1e-12)
        for a, b in zip(gradient, expected[1]):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        v = [RNG.normal(size=a.shape) for a in args[:3]]
        up, down = ([a + e * b for a, b in zip(args, v)] for e in (1e-5, -1e-5))
        rise = (run(*up, *args[3:])[0] - run(*down, *args[3:])[0]) / 2e-5
        np.testing.assert_allclose(rise, sum(map(np.vdot, gradient, v)), rtol=1e-6)


@pytest.mark.deep
@pytest.mark.parametrize(
    "ours, plain", [(logsumexps, plain_logsumexps), (softplus_sums, plain_softplus_sums)]
)
def test_half_precision_is_that_of_its_inputs(ours, plain):
    *arrays, exclude, g = arguments(600, 1100, 3)
    half = [jnp.asarray(a, jnp.bfloat16) for a in arrays]
    found = jax.jit(jax.grad(ours, (0, 1, 2)))(*half, exclude, g)
    with jax.enable_x64(True):
        rounded = [np.asarray(a, np.float64) for a in half]
        expected = jax.jit(jax.grad(plain, (0, 1, 2)))(*rounded, exclude, g)
    for a, b in zip(found, expected):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=0, atol=0.01 * abs(b).max())


def test_under_vmap_it_is_one_after_another():
    xs, ys = RNG.normal(size=(2, N, D)), RNG.normal(size=(2, M, D))

    def value(x, y):
        return kernels.matmul_logsumexp(x, y, exclude=EXCLUDE, filter_below=1e-12) @ G

    found = jax.jit(jax.vmap(jax.value_and_grad(value, (0, 1))))(xs, ys)
    for i in range(2):
        expected, dx, dy, _ = by_entry(xs[i], ys[i], G, exclude=EXCLUDE)
        np.testing.assert_allclose(found[0][i], expected @ G, rtol=1e-5)
        assert_close((found[1][0][i], found[1][1][i]), (dx, dy))


@pytest.mark.parametrize("form", [xla, pallas_tpu])
def test_corners_are_finite(form):
    large = np.array([[1e4], [-1e4], [0.0]], np.float32)
    y, g = np.array([[1.0], [-1.0]], np.float32), np.ones(3, np.float32)
    bias, exclude = np.array([0.0, -np.inf], np.float32), np.array([-1, 0, 1], np.int32)
    static = {"interpret": True} if form is pallas_tpu else {}
    for kind in ("logsumexp", "softplus"):
        case = {"kind": kind, "bias": bias, "exclude": exclude}
        value, dx, dy, db = jax.jit(both(form, case, **static))(large, y, g)
        # the second row excludes the only column that the bias leaves
        left = [1e4, -np.inf, 0.0] if kind == "logsumexp" else [1e4, 0.0, np.log(2)]
        np.testing.assert_allclose(value, left, rtol=1e-6)
        rest = [1.0, 0.0, 1.0] if kind == "logsumexp" else [1.0, 0.0, 0.5]
        np.testing.assert_allclose(dx[:, 0], rest)
        np.testing.assert_allclose(dy, [[1e4], [0.0]])
        np.testing.assert_allclose(db, [sum(rest), 0.0])


@pytest.mark.parametrize("form", [xla, pallas_tpu])
def test_the_filter_skips_tiles_and_errs_by_no_more_than_it_says(form):
    """Columns of the second tile are unlikely in all rows but one, whose cotangent is zero."""
    n, m, eps = 20, 256, 1e-3
    x = np.abs(RNG.normal(size=(n, D))).astype(np.float32)
    y = np.abs(RNG.normal(size=(m, D))).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True) / 3
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    y[128:] *= -2
    x[7] *= -1
    g = RNG.normal(size=n).astype(np.float32)
    g[7] = 0
    static = {"interpret": True, "blocks": (24, 128)} if form is pallas_tpu else {"tile": (n, 128)}
    none = {"bias": np.zeros(m, np.float32), "exclude": np.full(n, -1, np.int32)}
    options = {"kind": "logsumexp", **none}
    run = jax.jit(
        lambda *a: [
            both(form, options, backward={"filter_below": e}, **static)(*a) for e in (None, eps)
        ]
    )
    exact, found = run(x, y, g)
    z = x.astype(np.float64) @ y.T
    p = np.exp(z - np.log(np.exp(z).sum(1, keepdims=True)))
    seen = p[g != 0]
    assert seen[:, :128].max() > eps > seen[:, 128:].max()  # what the case is made for
    assert p[7, 128:].max() > eps
    assert not np.any(found[2][128:]) and np.abs(exact[2][128:]).min() > 0
    np.testing.assert_allclose(found[2][:128], exact[2][:128], rtol=1e-5, atol=1e-6)
    bound = np.abs(g)[:, None] * (p[:, 128:].max(1, keepdims=True) * np.abs(y[128:]).sum(0))
    assert (np.abs(found[1] - exact[1]) <= bound + 1e-6).all()
    assert np.abs(found[1] - exact[1]).max() > 0


def test_the_tpu_form_is_the_loops_sums():
    n, m, d = 11, 150, 3
    x, y = (RNG.normal(size=s).astype(np.float32) for s in ((n, d), (m, d)))
    y[128:] *= 2  # so that the largest score of a row is in the second block
    bias = np.where(np.arange(m) % 7 == 3, -np.inf, RNG.normal(size=m)).astype(np.float32)
    exclude, g = RNG.integers(-1, m, n).astype(np.int32), RNG.normal(size=n).astype(np.float32)
    cases = [
        {"kind": "logsumexp", "bias": bias, "exclude": exclude, "softcap": 9.0},
        {"kind": "softplus", "bias": bias - 8, "exclude": np.full(n, -1, np.int32)},
    ]
    static = {"interpret": True, "blocks": (8, 128)}
    run = jax.jit(lambda *a: [both(pallas_tpu, c, **static)(*a) for c in cases])
    for case, found in zip(cases, run(x, y, g)):
        assert_close(found, by_entry(x, y, g, **case))


@pytest.mark.deep
def test_the_tpu_form_in_half_precision():
    x, y = (jnp.asarray(a, jnp.bfloat16) for a in (X, Y))
    case = {"kind": "logsumexp", "bias": BIAS, "exclude": EXCLUDE}
    found = jax.jit(both(pallas_tpu, case, interpret=True))(x, y, G)
    assert found[1].dtype == found[2].dtype == jnp.bfloat16
    for a, b in zip(found, by_entry(x, y, G, **case)):
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=0, atol=0.01 * abs(b).max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_tpu_form_lowers(dtype):
    n, m, d = 4000, 50000, 768
    shape = jax.ShapeDtypeStruct
    matrices = shape((n, d), dtype), shape((m, d), dtype)
    rest = shape((m,), jnp.float32), shape((n,), jnp.int32)
    rows = [shape((n,), jnp.float32)] * 2
    options = {"kind": "logsumexp", "softcap": 30.0, "precision": "highest"}

    def forward(*a):
        return pallas_tpu.forward(*a, **options), pallas_tpu.forward(*a, kind="softplus")

    def backward(*a):
        one = pallas_tpu.backward(*a, filter_below=2**-12, **options)
        return one, pallas_tpu.backward(*a, kind="softplus")

    assert lowered_for("tpu", forward, *matrices, *rest).count("@tpu_custom_call") == 2
    assert lowered_for("tpu", backward, *matrices, *rest, *rows).count("@tpu_custom_call") == 4


def test_blocks_fit_vmem_or_are_refused():
    shape = jax.ShapeDtypeStruct
    tiles = {}
    for d in (128, 1024, 4096):
        x, y = shape((4096, d), jnp.bfloat16), shape((9000, d), jnp.bfloat16)
        tiles[d] = pallas_tpu._blocks(x, y)
    assert tiles[128] == (512, 512) and tiles[4096] < tiles[1024]
    assert pallas_tpu._blocks(shape((3, 5), jnp.bfloat16), shape((7, 5), jnp.bfloat16)) == (16, 128)
    with pytest.raises(UserError, match="do not fit"):
        pallas_tpu._blocks(shape((4096, 2**15), jnp.float32), shape((4096, 2**15), jnp.float32))


def test_memory_is_a_tile():
    shape = jax.ShapeDtypeStruct
    shapes = shape((4096, 64), jnp.float32), shape((65536, 64), jnp.float32)

    def gradients(f):
        return lambda x, y: jax.grad(lambda x, y: f(x, y).mean(), (0, 1))(x, y)

    used = temporary_bytes(gradients(kernels.matmul_logsumexp), *shapes)
    assert used < temporary_bytes(gradients(reference.logsumexp), *shapes) / 50


def test_what_it_refuses():
    with pytest.raises(UserError, match="implementation='cuda'"):
        kernels.matmul_logsumexp(X, Y, implementation="cuda")
    with pytest.raises(UserError, match="takes float32 and bfloat16, not float16"):
        kernels.matmul_logsumexp(
            X.astype(np.float16), Y.astype(np.float16), implementation="pallas"
        )
    with pytest.raises(UserError, match="precision='high'"):
        kernels.matmul_softplus_sum(X, Y, precision="high", implementation="pallas")
    with pytest.raises(AssertionError):
        kernels.matmul_logsumexp(X, Y[:, :3])
    with pytest.raises(AssertionError):
        kernels.matmul_logsumexp(X, Y, bias=BIAS[:4])
    with pytest.raises(AssertionError):
        kernels.matmul_logsumexp(X, Y, exclude=EXCLUDE[:4])
