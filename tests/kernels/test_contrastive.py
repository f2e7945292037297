"""Contrastive losses by tiles and in rings: against loops, and against all scores in float64."""

import functools
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.kernels.checks import lowered_for, temporary_bytes
from tinker import kernels
from tinker.kernels.contrastive import reference, xla
from tinker.numerics import UserError

RNG = np.random.default_rng(0)
BIAS = np.float32(-1.5)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """So that seven rows are tiles of three, three and one."""
    monkeypatch.setattr(xla, "side_of_tile", lambda: 3)


def rows(n, d=5):
    return RNG.normal(size=(n, d)).astype(np.float32)


def softmax_loop(x, y, symmetric, where):
    """-log of the share of the match, pair by pair; the mean over both directions if symmetric."""
    x, y, out = x.astype(float), y.astype(float), np.zeros(len(x))
    kept = [i for i in range(len(x)) if where[i]]
    for i in kept:
        found = -np.log(np.exp(x[i] @ y[i]) / sum(np.exp(x[i] @ y[j]) for j in kept))
        other = -np.log(np.exp(x[i] @ y[i]) / sum(np.exp(x[j] @ y[i]) for j in kept))
        out[i] = (found + other) / 2 if symmetric else found
    return out


def sigmoid_loop(x, y, bias, where):
    """A coin for every pair, heads where they match."""
    x, y, out = x.astype(float), y.astype(float), np.zeros(len(x))
    for i in range(len(x)):
        for j in range(len(x)):
            if where[i] and where[j]:
                heads = 1 / (1 + np.exp(-(x[i] @ y[j] + bias)))
                out[i] -= np.log(heads if i == j else 1 - heads)
    return out


def everything(softmax, sigmoid):
    """A function of all forms' values ``[3, n]`` and of the gradients of their weighted sums."""

    def run(x, y, bias, where, weights):
        def forms(x, y, bias):
            both = functools.partial(softmax, symmetric=True)
            return [
                softmax(x, y, where=where),
                both(x, y, where=where),
                sigmoid(x, y, bias, where=where),
            ]

        values, pull = jax.vjp(forms, x, y, bias)
        none = [jnp.zeros_like(v) for v in values]
        grads = [pull([*none[:i], weights, *none[i + 1 :]]) for i in range(3)]
        return values, grads

    return run


# Unoptimized code, sooner: these tests spend their time in the compiler.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
dense = jit(everything(reference.softmax, reference.sigmoid))
ours = jit(everything(kernels.contrastive_softmax, kernels.contrastive_sigmoid))


def exact(x, y, bias, where, weights):
    """All scores at once, in float64."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(a, jnp.float64) for a in (x, y, bias, weights)]
        return jax.tree.map(np.asarray, dense(*wide[:3], where, wide[3]))


def close(found, expected, **tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.isfinite(a).all() and a.dtype == np.float32
        np.testing.assert_allclose(a, b, **tolerance)


def held_to_loops_and_to_all_scores(fn, n, d):
    x, y, weights = rows(n, d), rows(n, d), rows(n, 1)[:, 0]
    for where in (np.arange(n) % 3 != 1, np.ones(n, bool)):
        values, grads = found = fn(x, y, BIAS, where, weights)
        close(found, exact(x, y, BIAS, where, weights), rtol=2e-5, atol=2e-6)
        loops = [softmax_loop(x, y, symmetric, where) for symmetric in (False, True)]
        loops.append(sigmoid_loop(x, y, float(BIAS), where))
        np.testing.assert_allclose(values, loops, rtol=2e-5, atol=2e-6)
        for of_x, of_y, _ in grads:  # what is left out has no part in anything
            assert not np.any(of_x[~where]) and not np.any(of_y[~where])


def test_values_are_the_loops_and_gradients_those_of_all_scores():
    held_to_loops_and_to_all_scores(ours, 7, 5)


def test_one_row_and_scores_that_fit_a_tile():
    forms = (kernels.contrastive_softmax, kernels.contrastive_sigmoid)
    tiled = (functools.partial(fn, implementation="xla") for fn in forms)
    held_to_loops_and_to_all_scores(jit(everything(*tiled)), 1, 3)
    x = rows(3)
    held = jax.make_jaxpr(lambda x: forms[0](x, x) + forms[1](x, x, BIAS))
    assert "custom_vjp" not in str(held(x)) and "custom_vjp" in str(held(rows(4)))


def test_the_pallas_forms():
    forms = (kernels.contrastive_softmax, kernels.contrastive_sigmoid)
    softmax, sigmoid = (functools.partial(fn, implementation="pallas") for fn in forms)
    held_to_loops_and_to_all_scores(jit(everything(softmax, sigmoid)), 7, 5)

    def loss(x, y):
        return softmax(x, y, symmetric=True).sum() + sigmoid(x, y, -10.0).sum()

    x = jax.ShapeDtypeStruct((4096, 512), jnp.bfloat16)
    text = lowered_for("tpu", jax.grad(loss, (0, 1)), x, x)
    assert text.count("tpu_custom_call") >= 7  # two log-sum-exps, of both and the sigmoid gradients
    assert "mosaic_gpu" in lowered_for("cuda", jax.grad(loss, (0, 1)), x, x)


def test_corners():
    x, y, weights, all_of_them = rows(7), rows(7), np.ones(7, np.float32), np.ones(7, bool)
    alike = np.tile(x[:1], (7, 1))
    for a, b in ((0 * x, y), (alike, alike), (3e3 * x, y), (3e3 * x, -x)):
        close(found := ours(a, b, BIAS, all_of_them, weights), found)
    values, _ = ours(alike, alike, BIAS, all_of_them, weights)
    np.testing.assert_allclose(values[:2], np.log(7), rtol=1e-5)
    values, _ = ours(3e3 * x, x, BIAS, all_of_them, weights)
    expected, _ = exact(3e3 * x, x, BIAS, all_of_them, weights)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=0.02)
    none = ours(x, y, BIAS, np.zeros(7, bool), weights)
    assert not any(np.any(a) for a in jax.tree.leaves(none))
    one, _ = ours(x, y, BIAS, np.arange(7) == 4, weights)
    np.testing.assert_allclose(one[:2], 0, atol=1e-6)
    np.testing.assert_allclose(one[2][4], np.log1p(np.exp(-(x[4] @ y[4] + BIAS))), rtol=1e-5)


def test_bfloat16_and_a_bias_for_each_row_of_y():
    x, y, bias, weights = rows(7), rows(7), rows(7, 1)[:, 0], np.ones(7, np.float32)
    x, y = (jnp.asarray(a, jnp.bfloat16) for a in (x, y))
    values, grads = ours(x, y, bias, np.ones(7, bool), weights)
    expected, slopes = exact(x, y, bias, np.ones(7, bool), weights)
    close(values, expected, rtol=2e-5, atol=2e-6)
    for found, slope in zip(grads, slopes):
        assert found[0].dtype == found[1].dtype == jnp.bfloat16
        for a, b in zip(found[:2], slope):
            np.testing.assert_allclose(np.float32(a), b, rtol=0.02, atol=0.02)
    np.testing.assert_allclose(grads[2][2], slopes[2][2], rtol=2e-5, atol=2e-6)


RING = """
    import sys; sys.path.insert(0, {root!r})
    import functools, jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from tinker import kernels, train
    from tinker.kernels.contrastive import reference, xla

    xla.side_of_tile = lambda: 3
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(16, 6)).astype(np.float32) for _ in "xy"]
    maps = [rng.normal(size=(6, 4)).astype(np.float32) / 2 for _ in "xy"]
    weights, where, bias = rng.normal(size=(3, 16)), rng.random(16) < 0.7, np.float32(-1.5)

    def loss(softmax, sigmoid, maps, bias, inputs):
        "Gradients of what is computed before, in a program that XLA splits by itself."
        x, y = (a @ m for a, m in zip(inputs, maps))
        values = jnp.stack([softmax(x, y), softmax(x, y, symmetric=True, where=where),
                            sigmoid(x, y, bias, where=where)])
        return jnp.sum(weights * values), values

    def both(softmax, sigmoid):
        fn = functools.partial(loss, softmax, sigmoid)
        return jax.jit(jax.value_and_grad(fn, (0, 1), has_aux=True))

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (maps, bias, inputs))
        expected = both(reference.softmax, reference.sigmoid)(*wide)
    for axis, sizes in {cases}:
        devices = jax.devices()[: int(np.prod(list(sizes.values())))]
        mesh = train.make_mesh(sizes, devices)
        with jax.set_mesh(mesh):
            ring = both(functools.partial(kernels.contrastive_softmax, axis=axis),
                        functools.partial(kernels.contrastive_sigmoid, axis=axis))
            split = NamedSharding(mesh, PartitionSpec(axis))
            args = maps, bias, jax.device_put(inputs, split)
            level = {{"xla_backend_optimization_level": 0}}
            compiled = ring.lower(*args).compile(level)
            text = compiled.as_text()
            assert "all-gather" not in text
            assert ("collective-permute" in text) == (len(devices) > 1)
            found = compiled(*args)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=3e-5, atol=3e-6)
        print(axis, sizes, "as one")
"""


def ring(python, cases):
    code = textwrap.dedent(RING.format(root=str(ROOT), cases=cases))
    assert python(code, devices=4).stdout.count("as one") == len(cases)


def test_a_ring_of_four_is_all_scores(python):
    ring(python, [("data", {"data": 4})])


@pytest.mark.deep
def test_rings_of_any_axes_are_all_scores(python):
    sizes = {"data": 2, "fsdp": 2}
    cases = [("data", {"data": 1}), ("data", {"data": 2}), ("fsdp", sizes)]
    ring(python, [*cases, (("data", "fsdp"), sizes)])


@pytest.mark.deep
def test_a_device_of_a_ring_holds_its_own_rows(python):
    """As many rows on each of two and of four devices take as much memory of each."""
    code = """
        import jax, jax.numpy as jnp
        from tinker import kernels, train
        from jax.sharding import NamedSharding, PartitionSpec

        def temporary(devices):
            mesh = train.make_mesh({"data": devices}, jax.devices()[:devices])
            with jax.set_mesh(mesh):
                split = NamedSharding(mesh, PartitionSpec("data"))
                x = jax.ShapeDtypeStruct((8192 * devices, 256), jnp.float32, sharding=split)
                def loss(x, y):
                    both = kernels.contrastive_softmax(x, y, symmetric=True, axis="data")
                    return both.mean() + kernels.contrastive_sigmoid(x, y, 0.0, axis="data").mean()
                compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, x).compile()
                return compiled.memory_analysis().temp_size_in_bytes

        two, four = temporary(2), temporary(4)
        assert four < 1.05 * two, (two, four)
        """
    python(textwrap.dedent(code), devices=4)


@pytest.mark.deep
@pytest.mark.parametrize("form", ["one way", "both ways", "sigmoid"])
def test_65536_rows_take_less_than_2_gib(form, monkeypatch):
    monkeypatch.undo()  # tiles as they are

    def loss(x, y):
        if form == "sigmoid":
            return kernels.contrastive_sigmoid(x, y, -10.0).mean()
        return kernels.contrastive_softmax(x, y, symmetric=form == "both ways").mean()

    x = jax.ShapeDtypeStruct((65536, 512), jnp.float32)
    assert temporary_bytes(jax.value_and_grad(loss, (0, 1)), x, x) < 2**31


def test_mistakes_are_told():
    x = rows(6)
    with pytest.raises(UserError, match="axis='dta' is of no mesh here.*jax.set_mesh"):
        kernels.contrastive_softmax(x, x, axis="dta")
    with pytest.raises(UserError, match="implementation"):
        kernels.contrastive_sigmoid(x, x, 0.0, implementation="fast")
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh), pytest.raises(UserError, match="did you mean 'data'"):
        kernels.contrastive_softmax(x, x, axis="dta")
    four = jax.sharding.AbstractMesh((4,), ("data",))
    with jax.sharding.use_abstract_mesh(four), pytest.raises(UserError, match="6 rows do not div"):
        kernels.contrastive_softmax(x, x, axis="data")
    with pytest.raises(AssertionError):
        kernels.contrastive_softmax(x, x[:5])
    with pytest.raises(AssertionError):
        kernels.contrastive_sigmoid(x, x, 0.0, where=np.ones(5, bool))
