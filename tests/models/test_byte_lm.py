"""The language model against NumPy loops, and its cache and samples against the whole pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.drawing import double, drawn, jit
from tests.models.test_vision_transformer import block, layer_norm
from tinker import models, nn
from tinker.kernels import flash_attention
from tinker.models import stack_layers
from tinker.numerics import UserError

RNG = np.random.default_rng(0)
TINY = dict(vocab=11, length=12, width=8, depth=2, heads=2, mlp_ratio=2)
TOKENS = RNG.integers(0, 11, (3, 12))
MODEL = models.ByteLM(**TINY)
VARIABLES = drawn(MODEL, TOKENS)
SCANNED = models.ByteLM(**TINY, scan=True)
PAIRS = [(MODEL, VARIABLES), (SCANNED, stack_layers(VARIABLES))]
WINDOW = functools.partial(jax.nn.dot_product_attention, local_window_size=(4, 0))
WINDOWED = models.ByteLM(**TINY, attention_fn=WINDOW)  # sees five tokens
EITHER = pytest.mark.parametrize("model, variables", PAIRS, ids=["unrolled", "scanned"])

sample = jit(models.sample, static_argnames=("model", "steps", "top_k"))


def turn(x):
    """Rotates features [n, d] of positions 0, 1, … as complex numbers."""
    d = x.shape[1]
    z = x[:, : d // 2] + 1j * x[:, d // 2 :]
    z = z * np.exp(1j * np.arange(len(x))[:, None] * 10_000.0 ** (-2 * np.arange(d // 2) / d))
    return np.concatenate([z.real, z.imag], 1)


def language_model(p, tokens, tied, q):
    x = p["embed"]["embedding"][tokens]
    for i in range(2):
        x = block(x, p["transformer"][f"blocks_{i}"], 2, q, turn=turn, causal=True)
    x = layer_norm(x, p["transformer"]["norm"])
    return x, q(x) @ (p["embed"]["embedding"].T if tied else p["head"]["kernel"])


@pytest.mark.parametrize("tie", [True, False])
def test_byte_lm_is_its_equations(tie):
    q = np.tanh if tie else lambda x: x
    slot = dict(quantize_fn=jnp.tanh) if tie else {}
    model = models.ByteLM(**TINY, tie=tie, **slot, scan=not tie)
    variables = drawn(models.ByteLM(**TINY, tie=tie), TOKENS)
    given = stack_layers(variables) if model.scan else variables
    outputs = jit(model.apply)(given, TOKENS)
    for i, tokens in enumerate(TOKENS):
        x, logits = language_model(double(variables["params"]), tokens, tie, q)
        np.testing.assert_allclose(outputs["embeddings"][i], x, rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(outputs["logits"][i], logits, rtol=2e-4, atol=2e-5)


def test_the_future_does_not_change_the_past():
    run = jit(lambda tokens: MODEL.apply(VARIABLES, tokens)["logits"])
    before = run(TOKENS)
    for t in range(12):
        changed = TOKENS.copy()
        changed[:, t:] = (changed[:, t:] + 1) % 11
        after = run(changed)
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert np.abs(after[:, t:] - before[:, t:]).max((0, 2)).min() > 1e-4


def test_no_mask_is_held_and_biases_are_returned():
    fields = dict(attention_fn=flash_attention, position_fn=None, bias_fn=nn.alibi)
    flash = MODEL.clone(**fields)
    whole = jit(flash.apply)(VARIABLES, TOKENS)
    assert whole["bias"]["key_bias"].shape == (2, 1, 2, 12)
    linear = -np.array([2**-4, 2**-8])[:, None, None] * (np.arange(12)[:, None] - np.arange(12))

    def attend(query, key, value, bias, mask, is_causal):
        assert bias is mask is None and is_causal
        bias = linear[None].astype(np.float32)
        return jax.nn.dot_product_attention(query, key, value, bias, is_causal=True)

    same = MODEL.clone(attention_fn=attend, position_fn=None)
    logits = jit(same.apply)(VARIABLES, TOKENS)["logits"]
    np.testing.assert_allclose(whole["logits"], logits, rtol=1e-4, atol=1e-5)


def through_the_cache(model, variables, tokens, prefill, size):
    """Logits of all tokens, the first ``prefill`` read at once and the others one by one."""

    def read(cache, tokens):
        outputs = model.apply(variables, tokens, cache=cache)
        return outputs["cache"], outputs["logits"]

    cache = models.empty_cache(model, len(tokens), size)
    cache, first = read(cache, tokens[:, :prefill])
    cache, rest = jax.lax.scan(read, cache, tokens[:, prefill:].T[..., None])
    return jnp.concatenate([first, rest[:, :, 0].swapaxes(0, 1)], 1), cache.position


@EITHER
def test_cached_logits_are_the_whole_pass(model, variables):
    def run(variables):
        full = model.apply(variables, TOKENS)["logits"]
        return full, *through_the_cache(model, variables, TOKENS, 5, 14)

    full, cached, position = jit(run)(variables)
    np.testing.assert_allclose(cached, full, rtol=1e-5, atol=1e-5)
    assert position == 12


def test_a_full_cache_is_a_sliding_window():
    def run(variables):
        full = WINDOWED.apply(variables, TOKENS)["logits"]
        return full, through_the_cache(MODEL, variables, TOKENS, 4, 5)[0]

    full, cached = jit(run)(VARIABLES)
    np.testing.assert_allclose(cached, full, rtol=1e-5, atol=1e-5)


@EITHER
def test_cold_samples_are_the_likeliest_tokens(model, variables):
    params, prompt = variables["params"], TOKENS[:, :4]
    tokens = sample(model, params, prompt, 8, key=jax.random.key(0), temperature=0.0)
    assert tokens.shape == (3, 8) and tokens.dtype == jnp.int32
    whole = np.concatenate([prompt, tokens], 1)
    logits = jit(model.apply)(variables, whole)["logits"]
    np.testing.assert_array_equal(tokens, np.argmax(logits[:, 3:-1], -1))
    nearly = sample(model, params, prompt, 8, key=jax.random.key(1), temperature=1e-6)
    np.testing.assert_array_equal(nearly, tokens)


def test_samples_follow_the_softmax_of_the_top():
    prompt = np.tile(TOKENS[:1, :3], (4000, 1))
    tokens = sample(
        MODEL, VARIABLES["params"], prompt, 2, key=jax.random.key(0), temperature=0.7, top_k=4
    )
    whole = np.concatenate([prompt, tokens], 1)[:, :-1]
    logits = np.asarray(jit(MODEL.apply)(VARIABLES, whole)["logits"])
    for step in range(2):
        z = logits[:, 2 + step]
        rank = (z > np.take_along_axis(z, tokens[:, step : step + 1], 1)).sum(1)
        assert rank.max() == 3
    z = np.sort(logits[0, 2])[::-1][:4].astype(float)
    expected = np.exp(z / 0.7) / np.exp(z / 0.7).sum()
    order = np.argsort(-logits[0, 2])[:4]
    frequency = [(tokens[:, 0] == v).mean() for v in order]
    np.testing.assert_allclose(frequency, expected, atol=0.03)
    assert 0.05 < expected.min()


def test_a_long_prompt_and_a_long_sample():
    """The last ``length`` tokens of a prompt are read, and sampling goes on past ``length``."""
    short = models.ByteLM(**{**TINY, "length": 5})
    tokens = sample(
        short, VARIABLES["params"], TOKENS[:, :7], 4, key=jax.random.key(0), temperature=0.0
    )
    whole = np.concatenate([TOKENS[:, 2:7], tokens], 1)
    logits = jit(WINDOWED.apply)(VARIABLES, whole)["logits"]
    np.testing.assert_array_equal(tokens, np.argmax(logits[:, 4:-1], -1))


def test_half_precision_and_a_single_step():
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), stack_layers(VARIABLES["params"]))
    for model in (SCANNED, SCANNED.clone(dtype=jnp.float32)):
        for steps in (1, 3):
            draw = lambda p: models.sample(model, p, TOKENS, steps, key=jax.random.key(0))  # noqa: B023, E731
            tokens = jax.eval_shape(draw, params)
            assert tokens.shape == (3, steps) and tokens.dtype == jnp.int32


def test_mistakes_are_told_in_one_line():
    params, key = VARIABLES["params"], jax.random.key(0)
    with pytest.raises(UserError, match="13 tokens are too many for length=12"):
        MODEL.apply(VARIABLES, np.zeros((1, 13), int))
    with pytest.raises(UserError, match="3 tokens are too many for a cache of size=2"):
        MODEL.apply(VARIABLES, TOKENS[:, :3], cache=models.empty_cache(MODEL, 3, 2))
    with pytest.raises(UserError, match=r"tokens \[batch, tokens\], not of shape \(12,\)"):
        MODEL.apply(VARIABLES, TOKENS[0])
    for options, message in (
        (dict(prompt=TOKENS[:, :0], steps=1), "a token or more"),
        (dict(prompt=TOKENS[0], steps=1), "a token or more"),
        (dict(prompt=TOKENS, steps=0), "steps=0"),
        (dict(prompt=TOKENS, steps=1, top_k=0), r"top_k=0 is not in \[1, 11\]"),
        (dict(prompt=TOKENS, steps=1, top_k=12), "top_k=12"),
    ):
        with pytest.raises(UserError, match=message):
            models.sample(MODEL, params, **options, key=key)
