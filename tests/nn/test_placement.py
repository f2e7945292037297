"""Placement: what an activation's sharding is, where there is a mesh and where there is none."""

import textwrap

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from tinker.nn import shard


def test_without_a_mesh_or_with_one_device_nothing_is_said():
    x = jnp.ones((4, 3))
    assert shard(x) is x
    mesh = AbstractMesh((1, 1), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.sharding.use_abstract_mesh(mesh):
        assert shard(x) is x


def constraints(x, *axes, sizes=(2, 2, 2), names=("data", "fsdp", "tensor"), fn=shard):
    """The specs that tracing ``fn`` on this mesh gives."""
    mesh = AbstractMesh(sizes, names, axis_types=(AxisType.Auto,) * len(names))
    with jax.sharding.use_abstract_mesh(mesh):
        jaxpr = jax.make_jaxpr(lambda x: fn(x, *axes))(x)
    return [eqn.params["sharding"].spec for eqn in jaxpr.eqns if "sharding" in eqn.params]


def test_axes_that_are_there_and_divide_are_split():
    x = jnp.ones((8, 5, 4))
    batch = ("data", "fsdp")
    assert constraints(x) == [P(batch)]
    assert constraints(x, batch, None, "tensor") == [P(batch, None, "tensor")]
    assert constraints(x, None, "tensor") == []  # 5 does not divide by 2
    assert constraints(x, batch, "tensor") == [P(batch, None)]
    assert constraints(x, None, None) == [P(None, None)]  # whole, as was asked
    assert constraints(x, sizes=(2,), names=("data",)) == [P("data")]
    assert constraints(jnp.ones((3, 8))) == []
    assert constraints(jnp.ones((2, 8, 3)), fn=jax.vmap(shard)) != []


def test_inside_a_shard_map_the_devices_are_the_programs(python):
    code = """
        import jax, jax.numpy as jnp
        from jax.sharding import PartitionSpec as P
        from tinker.nn import shard
        mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        with jax.set_mesh(mesh):
            x = jnp.arange(16.0)
            y = jax.jit(jax.shard_map(lambda x: shard(x) + 1, in_specs=P("data"),
                                      out_specs=P("data")))(x)
            assert jnp.array_equal(y, x + 1)
            assert jax.jit(shard)(x).sharding.spec == P("data")
            gradient = jax.jit(jax.grad(lambda x: (shard(x) ** 2).sum()))(x)
            assert jnp.array_equal(gradient, 2 * x)
        """
    python(textwrap.dedent(code), devices=8)
