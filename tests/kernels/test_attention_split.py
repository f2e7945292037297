"""Attention split over a mesh: that of one device, lowered for a TPU where the whole one is not."""

import textwrap

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from tinker import kernels
from tinker.numerics.errors import UserError

CODE = """
    import functools
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    from tinker import kernels

    names = ("data", "fsdp", "tensor")
    mesh = jax.make_mesh((2, 2, 2), names, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
    q, k, v = draw(0, 4, 32, 4, 16), draw(1, 4, 32, 2, 16), draw(2, 4, 32, 2, 16)
    terms = dict(key_bias=draw(3, 1, 4, 32), query_bias=draw(4, 4, 1, 32))

    def gradients(attend, **options):
        def total(q, k, v, terms):
            out, lse = attend(q, k, v, is_causal=True, return_lse=True, **terms, **options)
            return (out ** 2).sum() + jnp.sin(lse).sum()
        return jax.jit(jax.value_and_grad(total, (0, 1, 2, 3)))

    expected = gradients(kernels.flash_attention)(q, k, v, terms)
    split = NamedSharding(mesh, P(("data", "fsdp"), None, "tensor"))
    with jax.set_mesh(mesh):
        here = [jax.device_put(x, split) for x in (q, k, v)]
        for implementation in ("xla", "pallas"):
            found = gradients(kernels.split_attention, implementation=implementation)(*here, terms)
            for a, b in zip(*map(jax.tree.leaves, (found, expected))):
                np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
        # XLA splits its own form by itself: nothing is gathered.
        text = gradients(kernels.flash_attention).lower(*here, {}).compile().as_text()
        assert "all-gather" not in text and "all-to-all" not in text
        positions = jnp.tile(jnp.arange(32), (4, 1))
        shifted = kernels.split_attention(*here, is_causal=True, query_positions=positions)
        plain = kernels.flash_attention(q, k, v, is_causal=True)
        np.testing.assert_allclose(shifted, plain, rtol=2e-5, atol=2e-5)

        shapes = [jax.ShapeDtypeStruct((4, 512, 4, 128), jnp.bfloat16, sharding=split)] * 3
        def lowered(fn):
            fn = jax.jit(functools.partial(fn, is_causal=True, implementation="pallas"))
            return jax.export.export(fn, platforms=["tpu"])(*shapes).mlir_module()
        assert "tpu_custom_call" in lowered(kernels.split_attention)
        try:
            lowered(kernels.flash_attention)
        except NotImplementedError as error:
            assert "cannot be automatically partitioned" in str(error)
        else:
            raise AssertionError("XLA has learnt to split it: split_attention may go")
    """


def test_each_device_attends_with_its_examples_and_heads(python):
    python(textwrap.dedent(CODE), devices=8)


def test_axes_that_are_not_there_or_do_not_divide_are_refused():
    x = jnp.ones((4, 8, 2, 16))
    with pytest.raises(UserError, match="batch_axis=.* is of no mesh here.*jax.set_mesh"):
        kernels.split_attention(x, x, x)
    mesh = AbstractMesh((4, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.sharding.use_abstract_mesh(mesh):
        with pytest.raises(UserError, match="2 heads of keys do not divide among the 4 devices"):
            kernels.split_attention(x, x, x, batch_axis="data")
        with pytest.raises(UserError, match="did you mean 'data'"):
            kernels.split_attention(x, x, x, batch_axis="dta")
