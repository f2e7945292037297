"""Checkpoints: real kills, damage of every kind, and what is refused."""

import json
import random
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tests.train import kill
from tests.train.tiny import bits, rows, tiny
from tinker import train
from tinker.numerics import UserError
from tinker.train import checkpoints
from tinker.train.checkpoints import Checkpoints, checksum


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run: (workdir, state, results)."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, *train.fit(tiny(), workdir, progress=False)


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "copy")


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)


# Kills.


def test_three_kills_change_nothing(tmp_path):
    train.fit(kill.config(150), tmp_path / "whole", progress=False)
    rng = random.Random(0)
    landed, said = kill.run_killed(tmp_path / "killed", 150, tmp_path / "cache", 3, rng)
    assert landed and any("resuming" in text and "(bit for bit)" in text for text in said)
    assert kill.outcome(tmp_path / "killed") == kill.outcome(tmp_path / "whole")


@pytest.mark.deep
@pytest.mark.timeout(3600)
def test_a_hundred_kills_change_nothing():
    command = [sys.executable, "-m", "tests.train.kill", "-n", "100"]
    done = subprocess.run(command, cwd=kill.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# Resuming.


def test_a_finished_run_stays_as_it_is(whole, copy):
    before = {p: p.read_bytes() for p in files(copy / "checkpoints")}
    state, results = train.fit(tiny(), copy, progress=False)
    assert bits(state) == bits(whole[1]) and results == whole[2]
    assert {p: p.read_bytes() for p in files(copy / "checkpoints")} == before
    assert rows(copy) == rows(whole[0])


def test_rows_past_the_checkpoint_and_a_torn_line_are_dropped(whole, copy):
    shutil.rmtree(copy / "checkpoints/40")
    with open(copy / "metrics.jsonl", "a") as file:
        file.write('{"step": 50, "lo')
    state, _ = train.fit(tiny(), copy, progress=False)
    assert bits(state) == bits(whole[1]) and rows(copy) == rows(whole[0])


# Damage.


def damaged(folder, seed=0):
    """Variants of a checkpoint, one file hurt at a time: yields its name."""
    rng = random.Random(seed)
    for path in files(folder):
        content = path.read_bytes()
        name = str(path.relative_to(folder))
        path.write_bytes(content[: len(content) // 2])
        yield f"{name} cut in half"
        path.unlink()
        yield f"{name} absent"
        for _ in range(3):
            hurt = bytearray(content)
            hurt[rng.randrange(len(hurt))] ^= 1 << rng.randrange(8)
            path.write_bytes(hurt)
            yield f"{name} with a flipped bit"
        path.write_bytes(content)


def test_no_damage_is_read_silently(whole, copy):
    config = tiny()
    made = train.compiling.compiled(config, train.load_streams(config, "train"))
    good, fell_back = {40: bits(whole[1])}, 0
    saved = Checkpoints(epath.Path(copy), read_only=True)

    def read(step, meta):
        return bits(saved.read(step, meta, made.abstract, made.shardings))

    good[30] = saved.newest(read, only=30)[1]
    for what in damaged(copy / "checkpoints/40"):
        meta, state = saved.newest(read)
        assert meta["step"] in (30, 40), what
        assert state == good[meta["step"]], what
        fell_back += meta["step"] == 30
    assert fell_back > 10
    saved.close()


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "no meta"])
def test_it_falls_back_to_the_checkpoint_before(whole, copy, capsys, how):
    newest = copy / "checkpoints/40"
    largest = max(files(newest), key=lambda p: p.stat().st_size)
    content = largest.read_bytes()
    if how == "truncated":
        largest.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        largest.write_bytes(content[:500] + bytes([content[500] ^ 4]) + content[501:])
    elif how == "empty":
        (copy / "checkpoints/50").mkdir()
        newest = copy / "checkpoints/50"
    else:
        shutil.rmtree(newest / "meta")
    state, results = train.fit(tiny(), copy, progress=False)
    assert bits(state) == bits(whole[1]) and results == whole[2]
    assert rows(copy) == rows(whole[0])
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if "damaged" in line]) == 1
    assert len(said) == (1 if how == "empty" else 2), said  # and that it resumes
    assert (copy / "checkpoints_bad" / newest.name).is_dir()  # moved, not deleted
    assert (copy / "checkpoints/40").is_dir()
    assert train.restore(copy)[1].step == 40


def test_without_a_good_checkpoint_it_starts_anew_and_says_so(whole, copy, capsys):
    for path in (copy / "checkpoints").glob("*/meta/metadata"):
        path.write_text("{}")
    state, _ = train.fit(tiny(), copy, progress=False)
    assert f"no checkpoint in {copy} can be read; starting anew" in capsys.readouterr().err
    assert bits(state) == bits(whole[1]) and rows(copy) == rows(whole[0])
    assert len(list((copy / "checkpoints_bad").iterdir())) == 3


def test_a_flipped_bit_in_a_restored_array_is_found(whole, copy, monkeypatch):
    """Orbax reads some flips without a word; here every array of the state is flipped in turn."""
    config = tiny()
    made = train.compiling.compiled(config, train.load_streams(config, "train"))
    saved = Checkpoints(epath.Path(copy), read_only=True)
    meta, flat = saved.read_meta(40), checkpoints.flatten(whole[1])
    for path in meta["arrays"]:
        value = np.array(flat[path])
        value.reshape(-1).view(np.uint8)[-1] ^= 1
        restored = {**flat, path: jax.device_put(value, flat[path].sharding)}
        monkeypatch.setattr(saved, "_read", lambda step, restored=restored, **args: restored)
        with pytest.raises(checkpoints.Corrupt, match="checksum"):
            saved.read(40, meta, made.abstract, made.shardings)
    saved.close()


DTYPES = "bool int4 uint8 int16 float8_e4m3fn bfloat16 float16 float32 int32 complex64".split()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_checksum_changes_with_any_bit_and_place(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 2, (3, 5))).astype(dtype)
    seen = {int(checksum(x))}
    jitted = jax.jit(checksum)
    assert int(jitted(x)) in seen
    host = np.asarray(x)
    width = 1 if dtype == "bool" else 4 if dtype == "int4" else 8 * host.itemsize
    for place in range(host.size):
        for bit in range(width):
            raw = np.array(host).reshape(-1).view(np.uint8).reshape(host.size, -1)
            raw[place, bit // 8] ^= 1 << bit % 8
            seen.add(int(jitted(jnp.asarray(raw.reshape(-1).view(host.dtype).reshape(3, 5)))))
    assert len(seen) == 1 + host.size * width
    assert int(checksum(x[::-1])) != int(checksum(x))  # places count
    assert int(checksum(jnp.zeros(3, dtype))) != int(checksum(jnp.zeros(4, dtype)))


def test_a_checksum_takes_64_bits_and_random_keys():
    with jax.enable_x64(True):
        x = jnp.arange(4, dtype=jnp.float64)
        sums = {int(checksum(x.at[2].multiply(1 + 2.0**-k))) for k in (30, 52)}
        assert len(sums | {int(checksum(x))}) == 3
    assert int(checksum(jax.random.key(0))) != int(checksum(jax.random.key(1)))


# What is kept.


def test_the_latest_and_the_best_are_kept(tmp_path):
    changes = {"steps": 60, "eval_every": 5, "checkpoint_every": 10, "keep": 2}
    config = tiny(**changes, keep_best="max:test/nll")  # which falls: the first is the best
    train.fit(config, tmp_path / "run", progress=False)
    kept = sorted(int(p.name) for p in (tmp_path / "run/checkpoints").iterdir())
    assert kept == [5, 50, 60]
    assert int(train.restore(tmp_path / "run", step=5)[1].step) == 5


def test_nothing_that_is_nan_is_saved(tmp_path, whole):
    state = whole[1].replace(trainable={"w": jnp.array([1.0, jnp.nan])})
    saved = Checkpoints(epath.Path(tmp_path))
    with pytest.raises(
        train.NotFinite, match="trainable/w is nan at step 3; there is no checkpoint"
    ):
        saved.save(state, {"step": 3})
    saved.close()
    assert not list((tmp_path / "checkpoints").iterdir())


def test_any_state_comes_back(tmp_path):
    state = {
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4, impl="rbg"), 2),
        "nothing": jnp.zeros((0, 3)),
        "half": jnp.arange(3, dtype=jnp.bfloat16),
        "flags": jnp.array([True, False]),
        "deep": ({"a": jnp.int32(7)}, (), None),
    }
    saved = Checkpoints(epath.Path(tmp_path))
    saved.save(state, {"step": 1})
    saved.wait()
    mesh = train.make_mesh()
    shardings = train.tree_shardings(state, mesh)
    abstract = jax.eval_shape(lambda: state)
    back = saved.read(1, saved.read_meta(1), abstract, shardings)
    saved.close()
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert bits(back) == bits(state)
    assert jax.random.key_impl(back["keys"]) == jax.random.key_impl(state["keys"])


# What is refused.


def test_another_config_in_the_workdir_is_refused(copy):
    before = (copy / "config.json").read_bytes()
    with pytest.raises(UserError) as error:
        train.fit(tiny(**{"optimizer.learning_rate": 0.01, "seed": 3}), copy, progress=False)
    message = str(error.value)
    assert "optimizer.learning_rate is 0.003 there, 0.01 here" in message
    assert "seed is 0 there, 3 here" in message and "\n" not in message
    assert (copy / "config.json").read_bytes() == before
    train.fit(tiny(profile="1:2", mesh={"data": 1}), copy, progress=False)


def test_a_config_that_cannot_work_claims_no_workdir(tmp_path):
    with pytest.raises(UserError):
        train.fit(tiny(**{"optimizer.learning_rte": 0.01}), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("mine")
    with pytest.raises(UserError, match="has metrics.jsonl but no config.json"):
        train.fit(tiny(), tmp_path, progress=False)


def test_other_data_is_refused(copy, monkeypatch):
    shutil.rmtree(copy / "checkpoints/40")
    monkeypatch.setattr("tinker.data.fingerprint", lambda dataset: "other")
    with pytest.raises(UserError, match="the data of 'data' is not what the run was started on"):
        train.fit(tiny(), copy, progress=False)


def test_a_workdir_in_use_is_refused(copy):
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX)"
    code += "; print(flush=True); time.sleep(60)"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(copy / ".lock")], stdout=subprocess.PIPE
    )
    other.stdout.readline()
    with pytest.raises(UserError, match="another process is training in"):
        train.fit(tiny(), copy, progress=False)
    other.kill()
    other.wait()
    train.fit(tiny(), copy, progress=False)


def test_other_versions_are_told(copy, capsys, monkeypatch):
    shutil.rmtree(copy / "checkpoints/40")
    monkeypatch.setattr(jax, "__version__", "0.0.1")
    train.fit(tiny(), copy, progress=False)
    assert (
        "exact in state and data order, not in the last bits: versions was"
        in capsys.readouterr().err
    )


# Restoring.


def test_restore_gives_program_state_and_config(whole, copy):
    def tree():
        return {p: p.read_bytes() for p in files(copy)}

    before = tree()
    program, state, config = train.restore(copy)
    assert bits(state) == bits(whole[1])
    results = train.evaluate(program, state, config)
    assert results == whole[2]
    batch = {"image": np.zeros((4, 8, 8, 1), np.float32)}
    assert program.predict(state, batch)["logits"].shape == (4, 10)
    assert int(train.restore(copy, step=30)[1].step) == 30
    shutil.rmtree(copy / "checkpoints/40/state")
    before = tree()
    assert int(train.restore(copy)[1].step) == 30
    assert tree() == before


def test_restore_says_what_is_missing(copy, tmp_path):
    with pytest.raises(UserError, match="there is no run in"):
        train.restore(tmp_path / "nowhere")
    with pytest.raises(UserError, match="there is no checkpoint 35 in"):
        train.restore(copy, step=35)


def test_changed_code_is_told_from_damage(copy):
    config = json.loads((copy / "config.json").read_text())
    config["model"]["width"] = 16
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="the code has changed since checkpoint 40: .* is .* there"):
        train.restore(copy)
    assert not (copy / "checkpoints_bad").exists()


def test_a_run_starts_from_what_another_trained(whole, copy):
    _, state, _ = train.restore(copy)
    variables = train.trained_variables(copy)
    trained = state.trainable["model"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(variables["params"]["Dense_0"]["kernel"], trained)
    config = tiny(steps=1, init_from=str(copy))
    config.optimizer.learning_rate = 0.0
    later, results = train.fit(config, progress=False)
    np.testing.assert_array_equal(later.trainable["model"]["Dense_0"]["kernel"], trained)
    assert results == pytest.approx(whole[2])
