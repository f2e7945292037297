"""Attention against the equation in loops, and against itself in float64."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.kernels.checks import lowered_for, temporary_bytes
from tinker import kernels
from tinker.kernels.attention import api, pallas_tpu, patterns, reference, xla
from tinker.numerics.errors import UserError

PATTERNS = [
    kernels.LocalPattern(3),
    kernels.StridedPattern(5),
    kernels.FixedPattern(6, 2),
    kernels.LocalGlobalPattern(3, 2),
]


def loops(query, key, value, bias=None, mask=None, **options):
    """The docstring's equation, a query and a key at a time, in float64."""
    get = options.get
    batch, queries, heads, dim = query.shape
    keys, kv_heads = key.shape[1:3]
    scale = dim**-0.5 if get("scale") is None else get("scale")
    out, lse = np.zeros(query.shape), np.full((batch, heads, queries), -np.inf)

    def at(x, *index):
        index = [0 if n == 1 else i for i, n in zip(index, x.shape, strict=True)]
        return float(x[tuple(index)])

    for b in range(batch):
        for h in range(heads):
            c = h * kv_heads // heads
            for i in range(queries):
                scores, weights, values = [], [], []
                for j in range(keys):
                    t_q, t_k = i, j
                    if get("query_positions") is not None:
                        t_q = int(np.broadcast_to(get("query_positions"), (batch, queries))[b, i])
                    if get("key_positions") is not None:
                        t_k = int(np.broadcast_to(get("key_positions"), (batch, keys))[b, j])
                    score = scale * sum(
                        float(query[b, i, h, d]) * float(key[b, j, c, d]) for d in range(dim)
                    )
                    score += at(bias, b, h, i, j) if bias is not None else 0.0
                    if get("query_bias") is not None:
                        score += at(get("query_bias"), b, h, i)
                    if get("key_bias") is not None:
                        score += at(get("key_bias"), b, h, j)
                    weight = 1.0
                    if get("spans") is not None:
                        ramp = get("ramp")
                        left = (ramp + at(get("spans"), b, h, j) - (t_q - t_k)) / ramp
                        weight = min(max(left, 0.0), 1.0)
                    if get("is_causal") and t_k > t_q:
                        continue
                    if get("pattern") is not None and not get("pattern")(t_q, t_k):
                        continue
                    if mask is not None and not at(mask, b, h, i, j):
                        continue
                    if weight == 0.0 or score == -np.inf:
                        continue
                    scores.append(score)
                    weights.append(weight)
                    values.append(np.asarray(value[b, j, c], np.float64))
                if scores:
                    largest = max(scores)
                    terms = [w * np.exp(s - largest) for w, s in zip(weights, scores, strict=True)]
                    out[b, i, h] = sum(w * v for w, v in zip(terms, values, strict=True))
                    out[b, i, h] /= sum(terms)
                    lse[b, h, i] = largest + np.log(sum(terms))
    return out, lse


def draw(seed, batch, queries, keys, heads, kv_heads, dim, **shapes):
    """A query, a key, a value, and options of those shapes, in float64."""
    rng = np.random.default_rng(seed)
    shapes = dict(
        query=(batch, queries, heads, dim),
        key=(batch, keys, kv_heads, dim),
        value=(batch, keys, kv_heads, dim),
        **shapes,
    )
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def quick(fn):
    """Jitted, not optimised: to compile is most of what these tests do."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


def gradients(fn, dtype, floats, **others):
    """Outputs, log-sum-exps, and the gradient in each float of fixed random sums of both."""
    rng = np.random.default_rng(1)
    (batch, queries, heads, _), dims = floats["query"].shape, floats["query"].shape
    g_out, g_lse = rng.normal(size=dims), rng.normal(size=(batch, heads, queries))

    def loss(floats):
        out, lse = fn(**floats, **others)
        total = (out.astype(lse.dtype) * g_out.astype(lse.dtype)).sum()
        return total + (lse * g_lse.astype(lse.dtype)).sum(), (out, lse)

    def run(floats):
        (_, results), found = jax.value_and_grad(loss, has_aux=True)(floats)
        return *results, found

    return quick(run)({n: jnp.asarray(x, dtype) for n, x in floats.items()})


def flash(**arguments):
    return kernels.flash_attention(**arguments, return_lse=True)


def assert_close(found, expected, tolerance):
    """Each array's largest error, over its largest value."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        finite = np.isfinite(b)
        assert not np.isnan(b).any()
        np.testing.assert_array_equal(a[~finite], b[~finite])
        np.testing.assert_allclose(a[finite], b[finite], 0, tolerance * np.abs(b[finite]).max())


@pytest.fixture
def small(monkeypatch):
    """Blocks of 8, so that small lengths have several."""
    monkeypatch.setattr(xla, "BLOCK", 8)
    api._jitted.clear_cache()
    yield
    api._jitted.clear_cache()


def everything(seed=0):
    """Every argument but positions at once, one query without a key, one hidden by its bias."""
    floats = draw(
        *(seed, 2, 21, 29, 4, 2, 5),
        bias=(2, 1, 21, 29),
        query_bias=(2, 1, 21),
        key_bias=(1, 4, 29),
        spans=(2, 4, 29),
    )
    floats["spans"] = 6 + 6 * floats["spans"]
    floats["key_bias"][0, :, 3] = -np.inf
    floats["query_bias"][0, 0, 4] = -np.inf
    mask = np.random.default_rng(seed).random((1, 4, 21, 29)) < 0.7
    mask[:, :, 7] = False
    mask[..., 3, 2] = True
    others = dict(mask=mask, is_causal=True, ramp=5.0, pattern=patterns.StridedPattern(6))
    return floats, others


def positions(seed=1):
    """Positions out of order and far apart, which hide all keys from some queries."""
    floats = draw(*(seed, 2, 13, 18, 2, 2, 3), spans=(1, 1, 18), bias=(1, 2, 1, 18))
    floats["spans"] = 9 + 9 * floats["spans"]
    rng = np.random.default_rng(seed)
    at = dict(
        query_positions=rng.integers(0, 40, (2, 13)).astype(np.int32),
        key_positions=rng.integers(3, 50, 18).astype(np.int32),
    )
    others = dict(is_causal=True, ramp=7.0, pattern=patterns.LocalGlobalPattern(20, 5), scale=0.3)
    return floats, others | at


def in_float64(floats, others):
    with jax.enable_x64(True):
        return gradients(reference.attend, np.float64, floats, **others)


def test_it_is_the_equation_and_its_gradients(small):
    floats, others = everything()
    out, lse = loops(**floats, **others)
    assert np.isneginf(lse).any()
    with jax.enable_x64(True):
        found = gradients(flash, np.float64, floats, **others)
    assert all(x.dtype == np.float64 for x in jax.tree.leaves(found))
    assert_close(found[:2], (out, lse), 1e-12)
    assert_close(found, in_float64(floats, others), 1e-11)


def test_positions_that_are_given_say_who_is_before_whom(small):
    floats, others = positions()
    out, lse = loops(**floats, **others)
    assert np.isneginf(lse).any()
    found = gradients(flash, np.float32, floats, **others)
    assert_close(found[:2], (out, lse), 1e-5)
    assert_close(found, in_float64(floats, others), 3e-5)


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(16))
def test_any_shapes_and_arguments_together(seed, small):
    rng = np.random.default_rng(seed)
    batch, kv_heads, group, dim = rng.integers(1, 4, 4)
    queries, keys = rng.integers(1, 40, 2)
    heads = kv_heads * group
    scores = batch, heads, queries, keys

    def some(*axes):
        return tuple(int(n if rng.random() < 0.6 else 1) for n in axes)

    shapes = dict(
        bias=some(*scores),
        query_bias=(*some(batch, heads), queries),
        key_bias=(*some(batch, heads), keys),
        spans=(*some(batch, heads), keys),
    )
    shapes = {name: shape for name, shape in shapes.items() if rng.random() < 0.6}
    floats = draw(seed, batch, queries, keys, heads, kv_heads, dim, **shapes)
    others = dict(is_causal=bool(rng.random() < 0.5), pattern=rng.choice([None, *PATTERNS]))
    if "spans" in floats:
        floats["spans"] = 10 + 10 * floats["spans"]
        others["ramp"] = 4.0
    if rng.random() < 0.5:
        others["mask"] = rng.random(some(*scores)) < 0.7
    if rng.random() < 0.3:
        others["query_positions"] = rng.integers(0, 50, (batch, queries))
    if rng.random() < 0.3:
        others["key_positions"] = rng.integers(0, 50, keys)
    with jax.enable_x64(True):
        found = gradients(flash, np.float64, floats, **others)
    assert_close(found, in_float64(floats, others), 1e-10)


def test_spans_have_gradients_on_the_ramp_alone(small):
    """Against differences of the loops, with keys before, on and after their ramps."""
    floats = draw(3, 1, 4, 5, 1, 1, 2)
    rng = np.random.default_rng(4)
    g = rng.normal(size=(1, 4, 1, 2))
    spans = np.array([[[3.5, 0.5, -1.5, -3.5, -9.0]]])  # the first seen in full, the last never

    def loss(spans):
        return (loops(**floats, spans=spans, ramp=4.0)[0] * g).sum()

    steps = 1e-6 * np.eye(5)[:, None, None]
    expected = [(loss(spans + s) - loss(spans - s)) / 2e-6 for s in steps]

    def ours(spans):
        single = {n: jnp.asarray(x, jnp.float32) for n, x in floats.items()}
        return (kernels.flash_attention(**single, spans=spans, ramp=4.0) * g).sum()

    found = quick(jax.grad(ours))(jnp.asarray(spans, jnp.float32))[0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[0] == 0 and found[4] == 0 and (found[1:4] != 0).all()


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1, 1), (3, 1, 17, 6, 3, 2), (1, 17, 1, 2, 2, 3)])
def test_corners(shape, small):
    floats = draw(2, *shape)
    single = {n: jnp.asarray(x, jnp.float32) for n, x in floats.items()}
    others = {"is_causal": True, "scale": 2.0}
    found = quick(lambda floats: flash(**floats, **others))(single)
    assert_close(found, loops(**floats, **others), 1e-5)


def test_queries_of_two_blocks_see_what_only_the_first_of_them_keeps(small):
    floats = draw(11, 1, 21, 21, 1, 1, 3)
    pattern = kernels.LocalPattern(7)
    kept = patterns.kept_blocks(21, 21, 8, 8, pattern=pattern)
    assert kept[1, 0] and not kept[2, 0]  # the last block starts at 13, which sees 7
    single = {n: jnp.asarray(x, jnp.float32) for n, x in floats.items()}
    found = quick(lambda floats: flash(**floats, pattern=pattern))(single)
    assert_close(found, loops(**floats, pattern=pattern), 1e-5)


def test_bfloat16_is_summed_in_float32(small):
    floats = draw(5, 1, 40, 40, 2, 2, 16)
    rounded = {n: np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for n, x in floats.items()}
    found = gradients(flash, jnp.bfloat16, rounded, is_causal=True)
    assert found[0].dtype == jnp.bfloat16 and found[1].dtype == jnp.float32
    assert all(x.dtype == jnp.bfloat16 for x in found[2].values())
    expected = in_float64(rounded, dict(is_causal=True))
    assert_close(found[1], expected[1], 1e-6)
    assert_close(found, expected, 1e-2)


def test_many_values_of_one_are_not_lost(small):
    """A sum in bfloat16 would stop at 256."""
    one = jnp.ones((1, 1000, 1, 1), jnp.bfloat16)
    _, lse = flash(query=one[:, :1], key=0 * one, value=one)
    np.testing.assert_allclose(lse, np.log(1000.0), rtol=1e-6)


def test_vmap_is_a_loop(small):
    rng = np.random.default_rng(6)
    q, k, v = rng.normal(size=(3, 2, 1, 9, 2, 4)).astype(np.float32)
    c = rng.normal(size=(2, 1, 1, 9)).astype(np.float32)
    mask = rng.random((1, 1, 9, 9)) < 0.5

    def grad_of(attend):
        def loss(q, k, v, c):
            return (attend(q, k, v, mask=mask, key_bias=c, is_causal=True) ** 2).sum()

        return jax.grad(loss, (0, 1, 2, 3))

    found = quick(jax.vmap(grad_of(kernels.flash_attention)))(q, k, v, c)
    plain = quick(grad_of(lambda *x, **y: reference.attend(*x, **y)[0]))
    each = [plain(*x) for x in zip(q, k, v, c, strict=True)]
    assert_close(found, jax.tree.map(lambda *x: jnp.stack(x), *each), 1e-5)


def test_it_works_within_a_shard_map(small):
    """Where the queries are sharded and the keys are not, whose gradients are then summed."""
    floats = {n: x.astype(np.float32) for n, x in draw(10, 1, 9, 9, 1, 1, 4).items()}
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = dict(query=P(None, "x"), key=P(), value=P())

    def grad_of(attend):
        def loss(floats):
            return (attend(**floats, key_bias=jnp.zeros((1, 1, 9))) ** 2).sum()

        return jax.grad(loss)

    ours = jax.shard_map(
        grad_of(kernels.flash_attention), mesh=mesh, in_specs=(specs,), out_specs=specs
    )
    plain = grad_of(lambda **x: reference.attend(**x)[0])
    assert_close(quick(ours)(floats), quick(plain)(floats), 1e-5)


def brute(pattern, queries, keys):
    """The papers' sets, element by element."""
    seen = np.zeros((queries, keys), bool)
    for i in range(queries):
        for j in range(keys):
            match pattern:
                case patterns.LocalPattern(window=w):
                    seen[i, j] = abs(i - j) < w
                case patterns.StridedPattern(stride=l):
                    seen[i, j] = abs(i - j) <= l or abs(i - j) % l == 0
                case patterns.FixedPattern(stride=l, summary=c):
                    seen[i, j] = int(i / l) == int(j / l) or j % l in range(l - c, l)
                case patterns.LocalGlobalPattern(window=w, globals_=g):
                    seen[i, j] = abs(i - j) < w or j in range(g) or i in range(g)
    return seen


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: type(p).__name__)
def test_patterns_are_the_papers_and_their_blocks_are_all_that_is_kept(pattern):
    seen = brute(pattern, 41, 50)
    i, j = np.arange(41)[:, None], np.arange(50)
    np.testing.assert_array_equal(pattern(i, j), seen)
    np.testing.assert_array_equal(pattern(jnp.array(i), jnp.array(j)), seen)
    for is_causal in False, True:
        left = seen & (j <= i) if is_causal else seen
        kept = patterns.kept_blocks(41, 50, 8, 12, is_causal=is_causal, pattern=pattern)
        padded = np.pad(left, ((0, 7), (0, 10))).reshape(6, 8, 5, 12)
        np.testing.assert_array_equal(kept, padded.any((1, 3)))
        for k in kept, kept.T:
            columns, counts = patterns.block_lists(k)
            for row, listed, count in zip(k, columns, counts, strict=True):
                np.testing.assert_array_equal(listed[:count], np.flatnonzero(row))
                assert (listed[count:] == listed[max(count - 1, 0)]).all()


def test_patterns_equal_their_own_kind_only():
    assert kernels.LocalPattern(3) == kernels.LocalPattern(3) != kernels.StridedPattern(3)

    class Before(NamedTuple):
        reach: int

        def __call__(self, i, j):
            return (i - j < self.reach) & (j <= i)

    class After(Before):
        def __call__(self, i, j):
            return (j - i < self.reach) & (i <= j)

    assert Before(1000) == After(1000)  # named tuples do not: they must not be mistaken either
    x = jnp.arange(3.0).reshape(1, 3, 1, 1)
    found = [kernels.flash_attention(0 * x, x, x, pattern=p) for p in (Before(1000), After(1000))]
    np.testing.assert_allclose(np.ravel(found), [0, 0.5, 1, 1, 1.5, 2], rtol=1e-6)


def test_a_pattern_is_asked_a_row_of_blocks_at_a_time():
    asked = []

    def near(i, j):
        asked.append(np.broadcast_shapes(i.shape, j.shape))
        return abs(i - j) < 100

    kept = patterns.kept_blocks(2000, 3000, 128, 256, is_causal=True, pattern=near)
    assert kept.shape == (16, 12) and kept.sum() < 40
    assert max(np.prod(shape) for shape in asked) <= 128 * 3000


def test_blocks_that_nobody_sees_are_not_computed(small):
    """NaN there reaches neither an output nor a gradient."""
    floats = {n: x.astype(np.float32) for n, x in draw(7, 1, 16, 40, 2, 2, 4).items()}
    floats["key"][:, 24:] = floats["value"][:, 24:] = np.nan

    def loss(pattern, is_causal, floats):
        out = kernels.flash_attention(**floats, pattern=pattern, is_causal=is_causal)
        return (out**2).sum()

    for rule in (None, True), (kernels.LocalPattern(3), False):
        value, found = quick(jax.value_and_grad(functools.partial(loss, *rule)))(floats)
        assert np.isfinite(value) and all(np.isfinite(x).all() for x in found.values())


def test_memory_is_linear_in_the_length():
    def grad_of(attend):
        def loss(q, k, v):
            return attend(q, k, v, is_causal=True).astype(jnp.float32).sum()

        return jax.grad(loss, (0, 1, 2))

    def at(n):
        return (jax.ShapeDtypeStruct((1, n, 8, 64), jnp.float32),) * 3

    ours = [temporary_bytes(grad_of(kernels.flash_attention), *at(n)) for n in (8192, 16384)]
    plain = temporary_bytes(grad_of(jax.nn.dot_product_attention), *at(8192))
    assert 10 * ours[0] < plain
    assert ours[1] < 2.1 * ours[0]


def test_mistakes_are_told_by_name():
    x = jnp.ones((2, 3, 4, 5))
    with pytest.raises(UserError, match="pallas"):
        kernels.flash_attention(x, x, x, implementation="triton")
    one = jnp.ones((1, 1, 1, 1))
    for name, lacking in dict(bias=one, mask=one > 0, key_positions=jnp.arange(3)).items():
        with pytest.raises(UserError, match=name):
            kernels.flash_attention(x, x, x, implementation="pallas", **{name: lacking})
    for wrong in dict(ramp=1.0), dict(spans=x[:, :, :, 0].swapaxes(1, 2)), dict(ramp=-1.0):
        with pytest.raises(UserError, match="ramp"):
            kernels.flash_attention(x, x, x, **wrong)
    shapes = dict(
        key=x[:1],
        value=x[:, :2],
        bias=x,
        mask=x > 0,
        query_bias=jnp.ones((2, 4, 2)),
        key_bias=jnp.ones((2, 2, 3)),
        spans=jnp.ones((4, 3)),
        query_positions=jnp.arange(4),
        key_positions=jnp.ones(3),
    )
    for name, wrong in shapes.items():
        arguments = dict(query=x, key=x, value=x) | {name: wrong}
        with pytest.raises(AssertionError, match=name):
            kernels.flash_attention(**arguments)


def tpu(**options):
    """The TPU kernels in interpret mode, in blocks of 128."""
    options |= dict(block=128, interpret=True)
    names = ["query", "key", "value", "query_bias", "key_bias", "spans"]

    @jax.custom_vjp
    def attend(*arrays):
        return pallas_tpu.forward(*arrays, **options)

    def forward(*arrays):
        results = attend(*arrays)
        return results, (arrays, *results)

    def backward(residuals, cotangents):
        arrays, out, lse = residuals
        return pallas_tpu.backward(*arrays, out, lse, *cotangents, **options)

    attend.defvjp(forward, backward)
    return lambda **floats: attend(*(floats.get(name) for name in names))


def test_tpu_kernels_in_interpret_mode():
    floats = draw(
        *(8, 2, 200, 300, 4, 2, 8),
        query_bias=(1, 4, 200),
        key_bias=(2, 1, 300),
        spans=(2, 4, 300),
    )
    floats["spans"] = 60 + 60 * floats["spans"]
    floats["key_bias"][0, 0, :130] = -np.inf  # and so, causality hiding the rest, the first rows
    floats["key_bias"][:, :, 199] = 100.0  # for rows that fill the block, more than exp can take
    others = dict(is_causal=True, ramp=40.0, pattern=patterns.StridedPattern(50), scale=0.5)
    found = gradients(tpu(**others), np.float32, floats)
    assert_close(found, in_float64(floats, others), 3e-5)


def test_pallas_through_the_front_door():
    # A bias of one row is a key's, which these forms take.
    floats = draw(9, 1, 30, 20, 2, 1, 8, bias=(1, 2, 1, 20), key_bias=(1, 1, 20))
    attend = functools.partial(flash, implementation="pallas")
    found = gradients(attend, jnp.bfloat16, floats, pattern=kernels.LocalPattern(15))
    rounded = {n: np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for n, x in floats.items()}
    expected = in_float64(rounded, dict(pattern=kernels.LocalPattern(15)))
    assert_close(found, expected, 1e-2)


LOWERED = {
    "causal": dict(is_causal=True),
    "fixed": dict(is_causal=True, pattern=patterns.FixedPattern(128, 8)),
    "biased": dict(query_bias=(1, 8, 1000), key_bias=(2, 1, 1000), spans=(2, 8, 1000), ramp=32.0),
}


@pytest.mark.parametrize("case", LOWERED)
def test_tpu_kernels_lower(case):
    shape = jax.ShapeDtypeStruct
    options = dict(LOWERED[case])
    terms = options.keys() & {"query_bias", "key_bias", "spans"}
    floats = {name: shape(options.pop(name), jnp.float32) for name in terms}
    floats |= dict(query=shape((2, 1000, 8, 64), jnp.bfloat16))
    floats |= dict.fromkeys(("key", "value"), shape((2, 1000, 2, 64), jnp.bfloat16))

    def loss(floats):
        return flash(**floats, **options, implementation="pallas")[0].astype(jnp.float32).sum()

    forward, both = (lowered_for("tpu", fn, floats) for fn in (loss, jax.grad(loss)))
    assert forward.count("tpu_custom_call") == 1
    assert both.count("tpu_custom_call") == 3


def test_what_hopper_lacks_is_refused_where_it_is_lowered_for_it():
    attend = functools.partial(kernels.flash_attention, implementation="pallas")
    x = jax.ShapeDtypeStruct((1, 128, 2, 64), jnp.float32)
    assert "tpu_custom_call" in lowered_for("tpu", attend, x, x, x)
    with pytest.raises(UserError, match="float32"):
        lowered_for("cuda", attend, x, x, x)


def test_gradients_that_are_not_wanted_are_not_summed():
    """That of a dense bias would be as large as the scores."""
    x = jax.ShapeDtypeStruct((1, 1024, 2, 8), jnp.float32)
    bias = jax.ShapeDtypeStruct((1, 2, 1024, 1024), jnp.float32)

    def loss(q, bias):
        return kernels.flash_attention(q, q, q, bias).sum()

    assert temporary_bytes(jax.grad(loss), x, bias) < 1.6 * 4 * 2 * 1024**2
