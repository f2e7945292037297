"""Sharding: rules, and eight virtual devices against one."""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from tinker import train
from tinker.numerics import UserError
from tinker.train.sharding import check_batch_size

AXES = ("data", "fsdp", "tensor")


@pytest.fixture
def mesh():
    return AbstractMesh((2, 4, 2), AXES, axis_types=(AxisType.Auto,) * 3)


def specs(tree, mesh, rules=(), **options):
    shardings = train.tree_shardings(tree, mesh, rules, **options)
    return jax.tree.map(lambda s: tuple(s.spec), shardings)


def abstract(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_large_leaves_split_along_their_largest_axis_that_divides(mesh):
    tree = {"a": abstract(128, 512), "b": abstract(1022, 128), "c": abstract(8, 8), "d": abstract()}
    tree["odd"] = abstract(333, 333)
    found = specs(tree, mesh)
    assert found == {"a": (None, "fsdp"), "b": (None, "fsdp"), "c": (), "d": (), "odd": ()}
    assert specs({"c": abstract(8, 8)}, mesh, min_size=1) == {"c": ("fsdp",)}


def test_the_first_rule_decides_for_a_parameter_and_its_moments(mesh):
    layer = {"kernel": abstract(64, 256), "bias": abstract(256)}
    tree = {"trainable": {"Dense_0": layer}, "opt_state": ({"mu": {"Dense_0": layer}},)}
    rules = [("kernel$", ("fsdp", "tensor")), ["Dense_0", [["data", "tensor"]]]]
    found = specs(tree, mesh, rules)
    sharded = {"kernel": ("fsdp", "tensor"), "bias": (("data", "tensor"),)}
    assert found["trainable"]["Dense_0"] == sharded
    assert found["opt_state"][0]["mu"]["Dense_0"] == sharded
    factored = {"trainable": {"kernel": abstract(64, 256)}, "opt_state": {"kernel": abstract(64)}}
    assert specs(factored, mesh, rules[:1])["opt_state"] == {"kernel": ()}


@pytest.mark.parametrize(
    "rule, message",
    [
        (("kernl", ()), "is found in no path"),
        (("kernel", (None, "tenser")), "no axis 'tenser' .did you mean 'tensor'"),
        (("kernel", (None, None, "tensor")), "has 2 axes, the rule names 3"),
        (("kernel", ("fsdp",)), r"of shape \(30, 8\) does not divide by 4"),
    ],
)
def test_rules_that_cannot_work_are_refused(mesh, rule, message):
    with pytest.raises(UserError, match=message):
        train.tree_shardings({"trainable": {"kernel": abstract(30, 8)}}, mesh, [rule])


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"fsdp": 0}, "must be at least 1"),
        ({"fsp": 2}, "no axis 'fsp' .did you mean 'fsdp'"),
        ({"fsdp": -1}, "only one may be -1"),
        ({"fsdp": 16}, "asks for data=. x fsdp=16 x tensor=1, which 1 devices do not fill"),
        ({"data": 2}, "asks for data=2"),
    ],
)
def test_meshes_that_cannot_be_are_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        train.make_mesh(sizes, jax.devices()[:1])


def test_a_batch_must_divide(mesh):
    check_batch_size(64, mesh)
    with pytest.raises(UserError, match="config.batch_size=60 does not divide among the mesh's 8"):
        check_batch_size(60, mesh)


def test_eight_devices_take_the_steps_of_one(python, tmp_path):
    code = """
        import sys; sys.path.insert(0, {root!r})
        import shutil, jax, numpy as np
        from tests.train.tiny import bits, tiny
        from tinker import train
        from tinker.train.checkpoints import checksum
        from tinker.train.loop import run

        assert len(jax.devices()) == 8
        one = jax.devices()[:1]
        def job(**changes):
            return tiny(steps=12, log_every=1, eval_every=0, checkpoint_every=6, **changes,
                        **{{"model.width": 256, "sharding_rules": RULES}})
        RULES = ()
        def memory(state):
            return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(
                (state.trainable, state.opt_state)))
        def losses(rows):
            return np.array([r["loss"] for r in rows if "loss" in r])

        alone, results, rows = run(job(mesh=dict(data=1)), progress=False)
        expected = losses(rows)
        tensor = [("Dense_0/kernel", (None, "tensor")), ("Dense_1/kernel", ("tensor", None))]
        for sizes, rules in [(dict(data=2, fsdp=4), ()),
                             (dict(data=2, fsdp=2, tensor=2), tensor)]:
            RULES = rules
            state, again, rows = run(job(mesh=sizes), progress=False)
            np.testing.assert_allclose(losses(rows), expected, atol=1e-6)
            assert abs(again["test/nll"] - results["test/nll"]) < 1e-5
            share = memory(state) / memory(alone)
            print(sizes, "share", round(share, 3))
            assert share < {{4: 0.45, 2: 0.6}}[sizes["fsdp"]], share
            sums = jax.jit(lambda t: jax.tree.map(checksum, t))
            host = jax.device_put(jax.device_get(state.trainable), one[0])
            same = jax.tree.map(lambda a, b: int(a) == int(b), sums(state.trainable), sums(host))
            assert jax.tree.all(same)

        # A checkpoint of one mesh goes on on another.
        RULES, where = (), {where!r}
        state, _ = train.fit(job(mesh=dict(data=2, fsdp=4)), where, progress=False)
        _, single, _ = train.restore(where)
        assert len(single.step.sharding.device_set) == 1 and bits(single) == bits(state)
        shutil.rmtree(where + "/checkpoints/12")
        state, _ = train.fit(job(mesh=dict(data=4, fsdp=2)), where, progress=False)
        assert memory(state) < 0.6 * memory(alone)
        for a, b in zip(jax.tree.leaves(state.trainable), jax.tree.leaves(alone.trainable)):
            np.testing.assert_allclose(a, b, atol=1e-5)
        """
    root = str(train.__path__[0]).rpartition("/tinker/")[0]
    code = textwrap.dedent(code.format(root=root, where=str(tmp_path / "run")))
    done = python(code, devices=8)
    assert "mesh was" in done.stderr and "not in the last bits" in done.stderr
    assert "resuming" in done.stderr, np.array(done.stderr)
