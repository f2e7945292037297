"""Plans: FLOPs against hand counts, bytes and collectives against what sharding must cost."""

import json
import textwrap

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from tinker import models, train
from tinker.cli import main
from tinker.cli.plan import human, parse_bytes, parse_mesh
from tinker.numerics import UserError
from tinker.train import planning
from tinker.train.flops import DEVICES, peak_flops

ROOT = str(train.__path__[0]).rpartition("/tinker/")[0]


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_products_count_two_for_each_multiplication_and_loops_their_turns():
    a, w = shape(8, 16), shape(16, 16)
    one = 2 * 8 * 16 * 16
    product = lambda a, w: (a @ w).sum()  # noqa: E731
    assert train.count_flops(product, a, w) == (one, 0)
    assert train.count_flops(jax.grad(product, (0, 1)), a, w).total == 2 * one  # no forward needed
    squared = lambda a, w: ((a @ w) ** 2).sum()  # noqa: E731
    assert train.count_flops(jax.grad(squared, (0, 1)), a, w).total == 3 * one
    assert train.count_flops(lambda a, w: (a @ w, a + 1)[1], a, w).total == 0  # not needed

    def turns(a, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), a, length=7)[0]

    assert train.count_flops(turns, a, w).total == 7 * one
    assert train.count_flops(jax.jit(turns), a, w).total == 7 * one
    batched = jax.vmap(turns, (0, None))
    assert train.count_flops(batched, shape(3, 8, 16), w).total == 3 * 7 * one
    # jax.checkpoint computes the product again for the gradient.
    again = jax.value_and_grad(lambda a, w: jax.checkpoint(squared)(jnp.sin(a), w), (0, 1))
    assert train.count_flops(again, a, w).total == 4 * one


def test_branches_loops_of_unknown_length_and_devices():
    a, w, one = shape(8, 16), shape(16, 16), 2 * 8 * 16 * 16

    def branches(a, w):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ w @ w, lambda: a @ w)

    assert train.count_flops(branches, a, w).total == 2 * one

    def unknown(a, w):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, a)

    assert train.count_flops(unknown, a, w) == (one, 1)
    mesh = AbstractMesh((4,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert train.count_flops(split, a, w).total == one


def test_a_convolution_counts_its_kernel_at_each_output():
    convolve = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x, k = shape(2, 10, 10, 3), shape(3, 3, 3, 5)
    assert train.count_flops(convolve, x, k).total == 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3)


def lm_flops(batch, tokens, depth, width, mlp, vocab):
    """By hand: of a training step of ByteLM."""
    projections = 4 * 2 * tokens * width * width
    attention = 2 * 2 * tokens * tokens * width
    feed_forward = 2 * 2 * tokens * width * mlp
    logits = 2 * tokens * width * vocab
    return 3 * batch * (depth * (projections + attention + feed_forward) + logits)


@pytest.mark.parametrize("scan", [False, True])
def test_a_transformers_flops_are_those_counted_by_hand_and_remats_come_on_top(scan):
    def flops(remat):
        model = models.ByteLM(
            vocab=96, length=24, width=32, depth=3, heads=4, scan=scan, remat=remat
        )
        tokens = jnp.zeros((5, 24), jnp.int32)
        params = jax.eval_shape(model.init, jax.random.key(0), tokens)
        loss = lambda params: (model.apply(params, tokens)["logits"] ** 2).sum()  # noqa: E731
        return train.count_flops(jax.grad(loss), params).total

    expected = lm_flops(5, 24, 3, 32, 128, 96)
    assert flops(None) == expected
    # A block's attention scores alone, and all of a block but its last product.
    dots, full = flops("dots_with_no_batch_dims_saveable"), flops("full")
    scores = 5 * 3 * 2 * 24 * 24 * 32
    assert expected + scores <= dots <= expected + 2 * scores < full < 4 / 3 * expected


LOOP = """HloModule jit_step, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%fused (p: f32[16,4], q: f32[4,8]) -> f32[16,8] {
  %p = f32[16,4]{1,0} parameter(0)
  %q = f32[4,8]{1,0} parameter(1)
  ROOT %dot.1 = f32[16,8]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (arg: (s32[], f32[16,4])) -> (s32[], f32[16,4]) {
  %arg = (s32[], f32[16,4]{1,0}) parameter(0)
  %a = f32[16,4]{1,0} get-tuple-element(%arg), index=1
  %g = f32[4,8]{1,0} all-gather(%w), channel_id=1, GATHER, dimensions={1}
  %f = f32[16,8]{1,0} fusion(%a, %g), kind=kOutput, calls=%fused
  ROOT %t = (s32[], f32[16,4]{1,0}) tuple(%i, %a)
}

%condition (arg: (s32[], f32[16,4])) -> pred[] {
  %arg.1 = (s32[], f32[16,4]{1,0}) parameter(0)
  ROOT %lt = pred[] compare(%c, %n), direction=LT
}

ENTRY %main (param: f32[16,4]) -> f32[] {
  %param = f32[16,4]{1,0} parameter(0)
  %loop = (s32[], f32[16,4]{1,0}) while(%init), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"6"},"known_init_step":{"init":"0","step":"1"}}
  %rs = bf16[2,4]{1,0} reduce-scatter(%param), replica_groups=[4,2]<=[8], to_apply=%add
  %both = (f32[], f32[3]{0}) all-reduce(%u, %v), replica_groups={}, to_apply=%add
  ROOT %next = f32[16,4]{1,0} collective-permute(%param), source_target_pairs={{0,4},{4,0}}
}
"""
GATHERS = {  # ways to write the groups along an axis of data=2 x fsdp=2 x tensor=2
    "replica_groups={{0,2},{1,3},{4,6},{5,7}}": "fsdp",
    "replica_groups=[4,2]<=[2,2,2]T(0,2,1)": "fsdp",
    "replica_groups=[4,2]<=[8]": "tensor",
    "replica_groups=mesh['a'=2,'b'=2,'c'=2] {'b'}": "fsdp",
    "replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}": "tensor",
    "replica_groups=mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2]T(1,0)) {'a'}": "tensor",
    "something_new=[8]": "unknown",
}


@pytest.mark.parametrize("groups, axis", GATHERS.items())
def test_collectives_and_products_are_counted_in_loops(groups, axis):
    names = ("data", "fsdp", "tensor")
    mesh = AbstractMesh((2, 2, 2), names, axis_types=(AxisType.Auto,) * 3)
    text = LOOP.replace("GATHER", groups)
    rows = {row["kind"]: row for row in planning.collectives(text, mesh)}
    gather = {"kind": "all-gather", "axes": [axis], "count": 6, "bytes": 6 * 4 * 8 * 4}
    assert rows["all-gather"] == gather
    scatter = {"kind": "reduce-scatter", "axes": ["tensor"], "count": 1, "bytes": 2 * 2 * 4 * 2}
    assert rows["reduce-scatter"] == scatter
    assert rows["all-reduce"]["axes"] == list(names) and rows["all-reduce"]["bytes"] == 16
    assert rows["collective-permute"]["axes"] == ["data"]
    assert planning._device_flops(text) == 6 * 2 * 16 * 4 * 8


def test_state_falls_with_the_devices_and_work_is_shared(python):
    code = """
        import jax
        from tinker import train
        from tinker.train.locating import load_config

        def plan(mesh, **changes):
            config = load_config("train/byte_lm")
            config.model.update(width=128, depth=3, length=64, scan=True)
            config.data.length = 64
            config.mesh = mesh
            return train.plan(train.override(config, changes))

        one = plan(dict(data=1))
        assert one["number_of_parameters"] * 4 == one["bytes"]["parameters"]
        assert one["flops"]["device"] == one["flops"]["step"] == one["flops"]["model"]
        assert not one["collectives"] and one["flops"]["unknown_loops"] == 0
        for n in (2, 8):
            found = plan(dict(data=1, fsdp=n))
            for what in ("parameters", "optimizer"):
                share = found["bytes"][what] * n / one["bytes"][what]
                assert 1 <= share < 1.02 + 0.01 * n, (n, what, share)
            assert found["flops"]["device"] * n == one["flops"]["step"]
            kinds = {row["kind"]: row for row in found["collectives"]}
            assert all(row["axes"] == ["fsdp"] for row in found["collectives"])
            # Parameters are gathered for the forward and the backward pass, gradients reduced once.
            size = one["bytes"]["parameters"]
            assert 1.8 * size < kinds["all-gather"]["bytes"] < 2.2 * size
            assert 0.9 * size < kinds["all-reduce"]["bytes"] < 1.3 * size
        both = plan(dict(data=2, fsdp=2, tensor=2))
        assert both["flops"]["device"] * 8 == one["flops"]["step"]
        full = plan(dict(data=1), **{"model.remat": "full"})
        assert full["flops"]["model"] == one["flops"]["model"] < full["flops"]["step"]
        assert full["bytes"]["temporaries"] < 0.5 * one["bytes"]["temporaries"]
        print(len(jax.live_arrays()), sum(x.nbytes for x in jax.live_arrays()))
        assert sum(x.nbytes for x in jax.live_arrays()) < 1000  # no state was ever there
        """
    print(python(textwrap.dedent(code), devices=8).stdout)


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "job.py"
    path.write_text(
        "from tinker.train import default_config\n\n\n"
        "def get_config():\n"
        "    config = default_config()\n"
        '    config.data = dict(source="digits")\n'
        '    config.model = dict(fn="tinker.models:MLP", inputs=("image",), hidden=(64,))\n'
        '    config.optimizer = dict(fn="optax:adam", learning_rate=1e-3)\n'
        "    config.batch_size = 64\n"
        "    return config\n"
    )
    return f"--config={path}"


def test_the_command_prints_tables_or_json_and_says_whether_it_fits(job, capsys):
    assert main(["plan", job, "--mesh=data=1", "--hbm=1MiB"]) == 0
    out = capsys.readouterr().out
    assert "f32[64, 64]" in out and "fits in 1.00 MiB" in out and "compiled for a CPU" in out
    assert main(["plan", job, "--mesh=data=1", "--hbm=0.1MiB"]) == 1
    assert "does not fit in 102.40 KiB" in capsys.readouterr().out
    assert main(["plan", job, "--mesh=data=1", "--device=v5e", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # images of 8 x 8 through 64 units to 10 classes; the images need no gradient
    assert found["flops"]["model"] == 2 * 64 * (2 * 64 * 64 + 3 * 64 * 10)
    assert found["bytes"]["parameters"] == 4 * found["number_of_parameters"]
    assert found["bytes"]["optimizer"] == 2 * found["bytes"]["parameters"] + 4
    assert found["fits"] and found["memory"] == 16 * 2**30
    assert found["seconds_at_peak"] == found["flops"]["model"] / 197e12


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--mesh=dta=4"], "no axis 'dta' (did you mean 'data'?)"),
        (["--mesh=data"], "'data' is not of the form AXIS=NUMBER"),
        (["--mesh=data=1", "--hbm=16"], "--hbm=16 is not of the form 16GiB"),
        (["--mesh=data=1", "--device=v5x"], "did you mean 'v5"),
        (["--mesh=data=1", "--sweep.seed=1,2"], "a plan is of one run"),
        ([], "needs --mesh="),
        (["--mesh=data=1", "--config.modl=3"], "no config.modl"),
    ],
)
def test_mistakes_are_answered_in_a_line(job, flags, message, capsys):
    assert main(["plan", job, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_sizes_are_read_and_written():
    assert parse_mesh("data=64,fsdp=4") == {"data": 64, "fsdp": 4, "tensor": 1}
    assert parse_bytes("1.5GiB") == 3 * 2**29 and parse_bytes("80GB") == 80 * 10**9
    assert [human(n) for n in (5, 2048, 3 * 2**29)] == ["5 B", "2.00 KiB", "1.50 GiB"]


class Chip:
    def __init__(self, device_kind):
        self.device_kind = device_kind


def test_peaks_are_of_known_devices_or_the_configs():
    config = train.default_config()
    assert peak_flops(config, Chip("TPU v5 lite")) == 197e12
    assert peak_flops(config, Chip("TPU v5")) == DEVICES["v5p"].peak == 459e12
    assert peak_flops(config, Chip("NVIDIA H100 80GB HBM3")) == 989e12
    assert peak_flops(config, jax.devices()[0]) is None  # a CPU
    config.peak_flops = 1e12
    assert peak_flops(config, jax.devices()[0]) == 1e12
    config.peak_flops = -1.0
    with pytest.raises(UserError, match="must be positive"):
        peak_flops(config, jax.devices()[0])
