"""Attention against ``jax.nn.dot_product_attention``, and on accelerators tokamax's."""

import functools
import importlib.util

import jax
import jax.numpy as jnp

from tinker.kernels.attention.api import flash_attention
from tinker.kernels.attention.patterns import LocalPattern
from tinker.kernels.benchmarking import Case, main


def cases():
    """What is usual, what is biased, what is sparse; and the memory of long sequences."""
    on_cpu = jax.default_backend() == "cpu"
    short, long = ((1, 1024, 8, 64), (1, 4096, 2, 64)) if on_cpu else ((4, 4096, 16, 128),) * 2
    dtype = jnp.float32 if on_cpu else jnp.bfloat16
    window = LocalPattern(256)
    for shape, name, options in (
        (short, "", {}),
        (short, ", causal", dict(is_causal=True)),
        (short, ", causal, key bias", dict(is_causal=True, key_bias=True)),
        (long, ", causal, 256 keys", dict(is_causal=True, pattern=window)),
    ):
        for backward in False, True:
            passes = ", forward and backward" if backward else ", forward"
            yield _case(f"attention{name}{passes}", shape, dtype, options, backward)
    for name, options in ("", {}), (", causal", dict(is_causal=True)):
        yield _case(
            f"attention{name}, memory", (1, 8192, 8, 64), dtype, options, True, measured=False
        )


def _case(name, shape, dtype, options, backward, measured=True):
    batch, length, heads, _ = shape
    of = (jax.ShapeDtypeStruct(shape, dtype),) * 4
    of += (jax.ShapeDtypeStruct((1, heads, length), jnp.float32),) if "key_bias" in options else ()
    args = None
    if measured:
        keys = jax.random.split(jax.random.key(0), len(of))
        args = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, of, strict=True)]
    on_cpu = jax.default_backend() == "cpu"
    ours = functools.partial(_flash, options, None if on_cpu else "pallas")
    peers = {"jax.nn": functools.partial(_plain, options, None)}
    if not on_cpu:
        peers["our XLA form"] = functools.partial(_flash, options, "xla")
    if jax.default_backend() == "gpu":
        peers["cuDNN"] = functools.partial(_plain, options, "cudnn")
    if not on_cpu and not options.get("pattern") and importlib.util.find_spec("tokamax"):
        peers["tokamax"] = functools.partial(_tokamax, options)
    wrap = _gradient if backward else _forward
    return Case(
        name,
        f"{'x'.join(map(str, shape))} {jnp.dtype(dtype).name}",
        wrap(ours),
        {n: wrap(p) for n, p in peers.items()},
        args,
        of,
    )


def _forward(attend):
    return lambda q, k, v, _, *bias: attend(q, k, v, *bias)


def _gradient(attend):
    def both(q, k, v, g, *bias):
        out, pull = jax.vjp(attend, q, k, v, *bias)
        return out, pull(g)

    return both


def _flash(options, implementation, q, k, v, key_bias=None):
    given = dict(options, key_bias=key_bias, implementation=implementation)
    return flash_attention(q, k, v, **given)


def _plain(options, implementation, q, k, v, key_bias=None):
    given = dict(is_causal=options.get("is_causal", False), implementation=implementation)
    if "pattern" in options:
        given["local_window_size"] = options["pattern"].window - 1
    return jax.nn.dot_product_attention(q, k, v, _bias(q, key_bias), **given)


def _tokamax(options, q, k, v, key_bias=None):
    import tokamax

    bias = _bias(q, key_bias)
    is_causal = options.get("is_causal", False)
    return tokamax.dot_product_attention(q, k, v, bias, is_causal=is_causal)


def _bias(q, key_bias):
    """Of each pair, as the others take it."""
    if key_bias is None:
        return None
    bias = jnp.broadcast_to(key_bias[:, :, None], (1, q.shape[2], q.shape[1], key_bias.shape[2]))
    return bias.astype(q.dtype)


if __name__ == "__main__":
    main([cases])
