"""Sharding: rules, and eight virtual devices against one."""

import re
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType

from tinker import models, train
from tinker.nn import is_matrix
from tinker.numerics import UserError
from tinker.train.sharding import TENSOR_RULES, check_batch_size

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


MATRICES = {  # the zoo's matrices: shape in one layer, and how the last axes are split
    "attention/query/kernel": ((256, 8, 32), ("fsdp", "tensor", None)),
    "attention/query/bias": ((8, 32), ("tensor", None)),
    "attention/out/kernel": ((8, 32, 256), ("tensor", None, "fsdp")),
    "mlp/up/kernel": ((256, 1024), ("fsdp", "tensor")),
    "mlp/up/bias": ((1024,), ("tensor",)),
    "mlp/down/kernel": ((1024, 256), ("tensor", "fsdp")),
    "mlp/down/bias": ((256,), (None,)),
}


@pytest.mark.parametrize("depth", [None, 16])  # 16 divides by all axes: it could be split by them
def test_the_zoo_is_split_by_column_then_by_row_and_never_along_its_layers(mesh, depth):
    for path, (shape, wanted) in MATRICES.items():
        block = "blocks_3"
        if depth:
            shape, wanted, block = (depth, *shape), (None, *wanted), "blocks"
        while wanted and wanted[-1] is None:
            wanted = wanted[:-1]
        leaf = {f"model/transformer/{block}/{path}": abstract(*shape)}
        found = specs({"trainable": leaf, "opt_state": leaf}, mesh)
        assert [*found["trainable"].values()] == [wanted], path
        assert found["opt_state"] == found["trainable"]
    found = specs({"embed": {"embedding": abstract(512, 256)}}, mesh)
    assert found["embed"]["embedding"] == ("tensor", "fsdp")
    # 3 heads do not divide by 2: no tensor axis, and fsdp as ever.
    leaf = {"query": {"kernel": abstract(192, 3, 64)}}
    assert specs(leaf, mesh)["query"]["kernel"] == ("fsdp",)


@pytest.mark.parametrize("fn, inputs", [("ByteLM", "tokens"), ("ViT", "image")])
@pytest.mark.parametrize("scan", [False, True])
def test_no_large_matrix_of_the_zoo_stays_whole_and_moments_lie_with_parameters(
    mesh, fn, inputs, scan
):
    module = getattr(models, fn)(depth=4, width=128, heads=4, scan=scan)
    shape = (2, 16, 16, 3) if inputs == "image" else (2, 16)
    array = jnp.zeros(shape, jnp.float32 if inputs == "image" else jnp.int32)
    params = jax.eval_shape(module.init, jax.random.key(0), array)["params"]
    state = {"trainable": params, "opt_state": jax.eval_shape(optax.adamw(1e-3).init, params)}
    found = train.tree_shardings(state, mesh, min_size=2**12)
    assert found["opt_state"][0].mu == found["opt_state"][0].nu == found["trainable"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        spec = path_value(found["trainable"], path).spec
        if is_matrix(path, leaf) and leaf.size >= 2**12:
            assert "fsdp" in spec, path
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "blocks" in name.split("/"):
            assert not spec or spec[0] is None
        assert ("tensor" in spec) == any(re.search(rule, name) for rule, _ in TENSOR_RULES)


def path_value(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


def test_a_rule_of_the_last_axes_serves_scanned_and_unrolled_layers(mesh):
    tree = {"a": {"kernel": abstract(64, 32)}, "blocks": {"kernel": abstract(6, 64, 32)}}
    found = specs(tree, mesh, [("kernel$", ("...", "tensor", "fsdp"))])
    assert found["a"]["kernel"] == ("tensor", "fsdp")
    assert found["blocks"]["kernel"] == (None, "tensor", "fsdp")


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


ZOO = """
    import os, sys; sys.path.insert(0, {root!r})
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"  # compiles in half the time
    import jax, numpy as np
    from tinker import train
    from tinker.train.loop import run
    from tinker.train.locating import load_config

    def job(name, mesh, **changes):
        config = load_config("train/" + name)
        config.update(steps=3, log_every=1, batch_size=16, eval_splits=(), keep_best=None)
        config.update(eval_every=0, checkpoint_every=0, steps_per_dispatch=1, mesh=mesh)
        config.model.update(width=128, depth=2, heads=4)
        if name == "byte_lm":
            config.model.length = config.data.length = 32
        return train.override(config, changes)

    def share(tree):
        arrays = jax.tree.leaves(tree)
        held = sum(x.addressable_shards[0].data.nbytes for x in arrays)
        return held / sum(x.nbytes for x in arrays)

    def check(name, sizes, parts, **changes):
        losses = []
        for mesh in (dict(data=1), sizes):
            state, _, rows = run(job(name, mesh, **changes), progress=False)
            losses.append([row["loss"] for row in rows if "loss" in row])
        np.testing.assert_allclose(*losses, atol=2e-6)
        print(name, sizes, changes, losses[1], share(state.trainable), share(state.opt_state))
        assert share(state.trainable) < 1.1 / parts and share(state.opt_state) < 1.1 / parts
        for mu, p in zip(*map(jax.tree.leaves, (moments(state), state.trainable))):
            assert mu.sharding == p.sharding

    def moments(state):
        found = jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu"))
        return next(x.mu for x in found if hasattr(x, "mu"))

    flash = dict(fn="tinker.kernels:flash_attention", partial=True)
    remat = "dots_with_no_batch_dims_saveable"
"""
THREE = "dict(data=2, fsdp=2, tensor=2)"
PAIRS = """
    check("byte_lm", dict(data=1, fsdp=8), 8, **{"model.scan": True, "model.remat": remat})
    check("vit_digits", THREE, 4, **{"model.attention_fn": flash})
"""
EVERY = """
    pallas = dict(flash, fn="tinker.kernels:split_attention", implementation="pallas")
    check("byte_lm", THREE, 4, **{"model.attention_fn": pallas, "model.scan": True})
    for name in ("byte_lm", "vit_digits"):
        for scan in (False, True):
            for sizes, parts in ((dict(data=1, fsdp=8), 8), (dict(data=2, fsdp=4), 4), (THREE, 4)):
                check(name, sizes, parts, **{"model.scan": scan})
"""
ROOT = str(train.__path__[0]).rpartition("/tinker/")[0]


@pytest.mark.parametrize("cases", [PAIRS, pytest.param(EVERY, marks=pytest.mark.deep)])
def test_the_zoo_takes_the_steps_of_one_device_and_holds_its_share(python, cases):
    code = textwrap.dedent(ZOO).format(root=ROOT) + textwrap.dedent(cases).replace("THREE", THREE)
    print(python(code, devices=8, timeout=570).stdout)


def test_a_loss_may_name_the_axes_of_the_programs_mesh(python, tmp_path):
    code = """
        import sys; sys.path.insert(0, {root!r})
        import numpy as np
        from tests.train.tiny import tiny
        from tinker import train
        from tinker.train.loop import run

        def job(axis, **mesh):
            loss = dict(fn="tinker.losses:info_nce", inputs=("logits", "logits"), axis=axis)
            return tiny(steps=4, log_every=1, mesh=mesh, loss=loss)
        def losses(rows):
            return [row["loss"] for row in rows if "loss" in row]

        expected = losses(run(job(None, data=1), progress=False)[2])
        axis, mesh, where = ("data", "fsdp"), dict(data=2, fsdp=2, tensor=2), {where!r}
        found = losses(run(job(axis, **mesh), where, progress=False)[2])
        np.testing.assert_allclose(found, expected, atol=1e-5)
        program, state, config = train.restore(where)  # on one device
        train.evaluate(program, state, config)
        try:
            run(job("fdsp", data=8), progress=False)
        except train.loop.UserError as error:
            assert "axis='fdsp' is of no mesh here (did you mean 'fsdp'?)" in str(error), error
        else:
            raise AssertionError
        """
    python(textwrap.dedent(code.format(root=ROOT, where=str(tmp_path / "run"))), devices=8)
