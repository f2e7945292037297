"""Expiring memories against the authors' code, sums over pairs, and attention that forgets none."""

import functools
import json

import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.models.drawing import drawn, jit
from tinker import nn
from tinker.kernels import flash_attention

RNG = np.random.default_rng(0)
GOLDEN = json.loads((ROOT / "tests" / "golden" / "expire_span.json").read_text())
M, R = GOLDEN["block"], GOLDEN["ramp"]  # queries of a block; as many memories before it


class Spans(fnn.Module):
    @fnn.compact
    def __call__(self, x):
        return nn.expire_span(x, None, 2, max_span=GOLDEN["max_span"], ramp=R)


def golden_spans():
    kernel = np.array(GOLDEN["span_weight"], np.float32).T
    params = {"expire_span": {"kernel": kernel, "bias": np.array([GOLDEN["span_bias"]])}}
    return Spans().apply({"params": params}, np.array(GOLDEN["h"], np.float32))


def test_spans_are_the_authors():
    spans = golden_spans()["spans"]
    assert spans.shape == (2, 1, 2 * M) and spans.dtype == jnp.float32
    ago = np.arange(M, -M, -1)  # of each memory, at the block's first query
    np.testing.assert_allclose(spans[:, 0] - ago, GOLDEN["remaining"], rtol=1e-5, atol=1e-5)
    h = np.array(GOLDEN["h"], np.float32)
    start = Spans().init(jax.random.key(0), h)["params"]["expire_span"]
    np.testing.assert_allclose(start["bias"], GOLDEN["initial_bias"], rtol=1e-6)
    assert not start["kernel"].any()


def test_attention_that_forgets_is_the_authors():
    w = {k: np.array(v, np.float32).T for k, v in GOLDEN.items() if k.startswith("proj")}
    h = np.array(GOLDEN["h"], np.float32)
    q = (h[:, M:] @ w["proj_query"]).reshape(2, M, 2, 3)
    k, v = ((h @ w[n]).reshape(2, 2 * M, 2, 3) for n in ("proj_key", "proj_val"))
    at = np.arange(-M, M)
    before = (at[M:, None] > at)[None, None]  # theirs leaves a query's own token out

    def run(q, k, v):
        options = dict(query_positions=at[M:], key_positions=at)
        return flash_attention(q, k, v, mask=before, **golden_spans(), **options)

    out = np.asarray(jit(run)(q, k, v)).reshape(2, M, -1) @ w["proj_out"]
    np.testing.assert_allclose(out, GOLDEN["y"], rtol=1e-4, atol=1e-5)


def loop(spans, ramp, positions, first, queries):
    """The loss of one row of spans and the number of its pairs, pair by pair."""
    loss, pairs = 0.0, np.zeros(len(spans))
    for j, (span, born) in enumerate(zip(spans, positions, strict=True)):
        for t in range(first, first + queries):
            left = span - (t - born)
            if -ramp < left < 0:
                loss, pairs[j] = loss + left, pairs[j] + 1
    return loss / (ramp * queries), pairs / (ramp * queries)


def test_expire_loss_is_the_authors_and_a_sum_over_pairs():
    fn = functools.partial(nn.expire_loss, ramp=R, positions=np.arange(-M, M), queries=M)
    spans = golden_spans()["spans"]
    found, grads = jit(lambda s: (fn(s), jax.grad(lambda s: fn(s).sum())(s)))(spans)
    np.testing.assert_allclose(found, GOLDEN["loss"], rtol=1e-5)
    for b in range(2):
        row = np.asarray(spans[b, 0], float)
        value, slope = loop(row, R, np.arange(-M, M), 0, M)
        np.testing.assert_allclose(found[b], value, rtol=1e-5)
        np.testing.assert_allclose(grads[b, 0], slope, rtol=1e-6)

    spans = RNG.uniform(0, 30, (3, 2, 1, 20)).astype(np.float32)  # blocks, batch
    spans[0, 0, 0, :3] = 4.0, 0.0, 19.0  # ends on a query
    for ramp, first, queries in ((2.5, 0, None), (8, 3, 9), (1, 0, 1)):
        fn = functools.partial(nn.expire_loss, ramp=ramp, first=first, queries=queries)
        expected = [
            sum(loop(s[b, 0], ramp, range(20), first, queries or 20)[0] for s in spans)
            for b in range(2)
        ]
        np.testing.assert_allclose(fn(spans), expected, rtol=1e-5, atol=1e-6)
    # Where all of the ramp is among the queries the gradient is that of the mean span.
    inside = jax.grad(lambda s: nn.expire_loss(s, ramp=4).sum())(jnp.full((1, 1, 1, 20), 2.5))
    np.testing.assert_allclose(inside[0, 0, 0, :13], 1 / 20)
    assert not inside[0, 0, 0, -3:].any()
    half = jax.eval_shape(fn, jnp.zeros((2, 1, 20), jnp.bfloat16))
    assert half.shape == (2,) and half.dtype == jnp.float32


def test_kept_memories_are_counted():
    spans = RNG.uniform(0, 20, (2, 3, 1, 12)).astype(np.float32)
    spans[0, 0, 0, :2] = 0.0, 1e6
    found = nn.kept_memories(spans, ramp=3)
    for b in range(3):
        kept = [s[b, 0, j] + 3 > t - j for s in spans for t in range(12) for j in range(t + 1)]
        np.testing.assert_allclose(found[b], sum(kept) / 24, rtol=1e-6)


def test_a_compact_cache_keeps_what_is_left_in_order():
    remaining = np.array([[0.0, 3.0, -1.0, 0.5, 9.0], [1.0, 2.0, 3.0, 4.0, 5.0]], np.float32)
    cache = {"slot": np.tile(np.arange(1, 6), (2, 1)), "keys": RNG.normal(size=(2, 5, 2, 3))}
    compact = jit(nn.compact_cache, static_argnames="capacity")
    found, left = compact(cache, remaining, capacity=3)
    np.testing.assert_array_equal(found["slot"], [[2, 4, 5], [3, 4, 5]])
    np.testing.assert_allclose(left, [[3.0, 0.5, 9.0], [3.0, 4.0, 5.0]])
    np.testing.assert_allclose(found["keys"][0, 1], cache["keys"][0, 3], rtol=1e-6)
    found, left = compact(cache, remaining, capacity=4)
    np.testing.assert_array_equal(found["slot"], [[2, 4, 5, 0], [2, 3, 4, 5]])
    np.testing.assert_array_equal(left[0] > 0, [True, True, True, False])
    found, left = compact(cache, 0 * remaining, capacity=1)
    assert not left.any() and not found["keys"].any()


def test_blocks_with_a_compact_cache_are_attention_over_all():
    """Expired memories can go: what they were does not change what is read."""
    q, k, v = RNG.normal(size=(3, 2, 24, 2, 4)).astype(np.float32)
    spans = RNG.uniform(0, 8, (2, 24)).astype(np.float32)
    spans[:, [1, 9]] = 30.0

    def block(cache, inputs):
        (t, left), (q, *new) = cache, inputs
        at = t + jnp.arange(6)
        born = jnp.broadcast_to(at, (2, 6))
        memory, left = left
        memory = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), memory, (*new, born))
        left = jnp.concatenate([left, jnp.full((2, 6), jnp.inf)], 1)
        k, v, e, born = memory
        positions = dict(query_positions=at, key_positions=born)
        options = dict(spans=e[:, None], ramp=3.0, is_causal=True, **positions)
        out = flash_attention(q, k, v, mask=(left > 0)[:, None, None], **options)
        remaining = jnp.where(left > 0, e + 3.0 - (t + 6 - born), 0.0)
        return (t + 6, nn.compact_cache(memory, remaining, capacity=9)), (out, (left > 0).sum(1))

    def run(q, k, v, spans):
        whole = flash_attention(q, k, v, spans=spans[:, None], ramp=3.0, is_causal=True)
        empty = (jnp.zeros((2, 9, *k.shape[2:])),) * 2
        empty += jnp.zeros((2, 9)), jnp.zeros((2, 9), jnp.int32)
        parts = [jnp.stack(jnp.split(x, 4, 1)) for x in (q, k, v, spans)]
        _, (out, used) = jax.lax.scan(block, (0, (empty, jnp.zeros((2, 9)))), parts)
        return whole, jnp.concatenate([*out], 1), used

    whole, out, used = jit(run)(q, k, v, spans)
    np.testing.assert_allclose(out, whole, rtol=1e-4, atol=1e-5)
    assert used[-1].max() <= 15 and used.min() >= 6


def test_a_transformer_hands_its_spans_to_the_loss():
    x = RNG.normal(size=(2, 7, 8)).astype(np.float32)
    bias_fn = functools.partial(nn.expire_span, max_span=7, ramp=2)
    model = nn.Transformer(2, 2, attention_fn=flash_attention, bias_fn=bias_fn, scan=True)
    variables = drawn(model, x)

    def cost(variables):
        _, aux = model.apply(variables, x, is_causal=True)
        return nn.expire_loss(aux["bias"]["spans"], ramp=2).mean()

    grads = jit(jax.grad(cost))(variables)["params"]["blocks"]["expire_span"]["bias"]
    assert grads.shape == (2, 1) and (grads > 0).all()
    with pytest.raises(AssertionError):
        nn.expire_loss(x, ramp=2)
