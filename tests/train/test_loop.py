"""The loop: the same numbers whatever the dispatch, what it reports, and how it stops."""

import json
import signal
import time

import jax
import numpy as np
import pytest

from tests.train.tiny import bits, rows, tiny
from tinker import train
from tinker.data import batch_indices
from tinker.experiments import train as experiment
from tinker.numerics import UserError
from tinker.train import feeding
from tinker.train.compiling import compiled
from tinker.train.reporting import Reporter


def test_dispatches_of_any_length_take_the_same_steps():
    ten = train.fit(tiny(steps_per_dispatch=10), progress=False)[0]
    seven = train.fit(tiny(steps_per_dispatch=7), progress=False)[0]
    assert bits(ten) == bits(seven)
    one = train.fit(tiny(steps_per_dispatch=1), progress=False)[0]
    for a, b in zip(jax.tree.leaves(ten.trainable), jax.tree.leaves(one.trainable)):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_loop_takes_the_steps_that_one_would_by_hand():
    config = tiny(steps=30)
    state, _, logged = train.loop.run(config, progress=False)
    dataset = train.load_streams(config, "train")[0].dataset

    def batch(step):  # 30 steps are more than an epoch of 20, whose last batch is padded
        index, mask = batch_indices(len(dataset.source["label"]), 64, step, seed=0)
        return {k: v[index] for k, v in dataset.source.items()} | {"mask": mask}

    program = train.build(config)
    mine = jax.jit(program.init)(jax.random.key(0), batch(0))
    step, losses = jax.jit(program.train_step), []
    for i in range(30):
        mine, metrics = step(mine, batch(i))
        losses.append(float(metrics["loss"]))
    for a, b in zip(jax.tree.leaves(state.trainable), jax.tree.leaves(mine.trainable)):
        np.testing.assert_allclose(a, b, atol=1e-5)
    means = [row["loss"] for row in logged if "loss" in row]
    np.testing.assert_allclose(means, np.reshape(losses, (3, 10)).mean(1), rtol=1e-5)


def test_data_read_ahead_gives_the_steps_of_data_on_the_device(monkeypatch):
    here = train.fit(tiny(), progress=False)[0]
    monkeypatch.setattr(feeding, "RESIDENT_BYTES", 0)
    read = train.fit(tiny(), progress=False)[0]
    for a, b in zip(jax.tree.leaves(here.trainable), jax.tree.leaves(read.trainable)):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_it_says_when_the_device_waits_for_data(monkeypatch, capsys):
    monkeypatch.setattr(feeding, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(feeding.Ahead, "_read", _slow(feeding.Ahead._read))
    train.fit(tiny(steps=30), progress=False)
    assert capsys.readouterr().err.count("the device waits for data") == 1


def _slow(read):
    def slowly(*args):
        time.sleep(0.06)
        return read(*args)

    return slowly


def test_an_error_of_the_reading_thread_reaches_the_user(monkeypatch):
    monkeypatch.setattr(feeding, "RESIDENT_BYTES", 0)

    def broken(self, iterators):
        raise OSError("the disk is gone")

    config = tiny()
    made = compiled(config, train.load_streams(config, "train"))
    feed = feeding.open_feed(train.load_streams(config, "train"), made.mesh, 0)
    monkeypatch.setattr(feeding.Ahead, "_read", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        feed.next()
    feed.close()


def test_seeds_share_what_was_compiled():
    def made(config):
        return compiled(config, train.load_streams(config, "train"))

    for seed in range(3):
        changes = {"seed": seed, "data.split_seed": seed, "steps": 5, "optimizer.b1": 0.8}
        config = tiny(**changes)
        train.fit(config, progress=False)
    assert made(config) is made(tiny(**changes | {"seed": 7}))
    assert made(config).steps_rows._cache_size() == 1
    assert made(config).measure._cache_size() == 1
    assert made(config) is not made(tiny(**changes | {"optimizer.b1": 0.7}))


def test_a_run_writes_rows_curves_and_a_board(tmp_path, capsys):
    state, results = train.fit(tiny(), tmp_path / "run")
    assert int(state.step) == 40 and 0.3 < results["test/accuracy"] <= 1
    kept = rows(tmp_path / "run")
    assert [r["step"] for r in kept] == [10, 20, 20, 30, 40, 40]
    assert kept[-1] == {"step": 40, **results}
    assert set(kept[0]) == {"step", "loss", "grad_norm"}
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    shown = capsys.readouterr().err
    assert "step 20/40  loss" in shown and "steps/s" in shown and "test/accuracy" in shown


def test_without_a_workdir_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train.fit(tiny(steps=10), progress=False)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == ""


def test_a_metric_that_is_not_finite_stops_the_run(tmp_path):
    spoiled = {"fn": "tests.train.tiny:spoiled_loss", "inputs": ("logits", "label", "step")}
    config = tiny()
    config.loss = {**spoiled, "at": 26}
    with pytest.raises(UserError) as error:
        train.fit(config, tmp_path / "run", progress=False)
    message = str(error.value)
    assert message.startswith("loss is nan at step 27; the last good checkpoint is step 20 in ")
    assert "\n" not in message
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == ["10", "20"]
    with pytest.raises(UserError, match="grad_norm|loss is nan at step 27; there is no checkpoint"):
        train.fit(config, progress=False)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_exits(tmp_path, monkeypatch, capsys, number, code):
    config = tiny(steps=80, log_every=4, eval_every=7, checkpoint_every=9)
    whole, results = train.fit(config, tmp_path / "whole", progress=False)
    before = signal.getsignal(number)
    log = Reporter.log

    def interrupt(self, step, *args):
        log(self, step, *args)
        if step == 24:
            signal.raise_signal(number)

    monkeypatch.setattr(Reporter, "log", interrupt)
    with pytest.raises(train.Interrupted) as stop:
        train.fit(config, tmp_path / "run", progress=False)
    assert stop.value.code == code
    assert signal.getsignal(number) is before
    assert f"saved step {stop.value.step}" in capsys.readouterr().err
    assert (tmp_path / "run/checkpoints" / str(stop.value.step)).is_dir()
    monkeypatch.setattr(Reporter, "log", log)
    state, again = train.fit(config, tmp_path / "run", progress=False)
    said = capsys.readouterr().err
    assert f"resuming {tmp_path / 'run'} at step {stop.value.step} (bit for bit)" in said
    assert bits(state) == bits(whole) and again == results
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_no_steps_evaluate_and_keep_what_was_initialised(tmp_path):
    state, results = train.fit(tiny(steps=0), tmp_path / "run", progress=False)
    assert int(state.step) == 0 and 0 <= results["test/accuracy"] < 0.5
    restored = train.restore(tmp_path / "run")[1]
    assert bits(restored) == bits(state)
    assert train.fit(tiny(steps=0), tmp_path / "run", progress=False)[1] == results


def test_it_says_what_a_parametrization_acts_on(capsys):
    masked = {"fn": "tinker.compress:masked", "sparsity": 0.5, "match": "Dense_0"}
    train.fit(tiny(steps=1, parametrization=masked))
    said = capsys.readouterr().err
    assert "2,048 weights in 1 leaves, 362 in 3 leaves left as they are" in said
    with pytest.raises(UserError, match="none of the parameters: model/Dense_0/bias"):
        train.fit(tiny(steps=1, parametrization={**masked, "match": "Dense_7"}), progress=False)


def test_a_profile_is_written(tmp_path):
    train.fit(tiny(steps=12, profile="5:8"), tmp_path / "run", progress=False)
    assert list((tmp_path / "run/profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"keep_best": "test/acuracy"}, "did you mean 'test/accuracy'"),
        ({"profile": "5-8"}, "'5-8' is not of the form"),
        ({"profile": "5:8"}, "needs a workdir"),
        ({"profile": "35:45"}, "past the last step, 40"),
        ({"steps": -1}, "must be at least 0"),
        ({"steps_per_dispatch": 0}, "must be at least 1"),
    ],
)
def test_mistakes_are_told_in_a_line(changes, message):
    with pytest.raises(UserError, match=message) as error:
        train.fit(tiny(**changes), progress=False)
    assert "\n" not in str(error.value)


def test_the_experiment_gives_a_study_scalars_and_curves():
    config = tiny(eval_splits=("test", "validation"))
    values = experiment.run(config, jax.random.key(3))
    assert set(values) == {
        *("test/accuracy", "test/nll", "validation/accuracy", "validation/nll"),
        *("loss", "grad_norm", "step"),
    }
    assert values["loss"].shape == (4,) and list(values["step"]) == [10, 20, 30, 40]
    assert config.seed == 0 and "split_seed" not in config.data  # the study's config stays
    again = experiment.run(config, jax.random.key(3))
    assert again["test/nll"] == values["test/nll"] and (again["loss"] == values["loss"]).all()
    other = experiment.run(config, jax.random.key(4))
    assert values["test/nll"] != other["test/nll"]


def test_arms_of_a_seed_share_split_order_and_initialisation():
    key = jax.random.key(5)
    still, plain = (
        experiment.run(tiny(steps=1, log_every=1, **{"optimizer.learning_rate": rate}), key)
        for rate in (0.0, 1e-3)
    )
    assert still["loss"] == plain["loss"]  # of the same first batch, at the same parameters
    assert still["test/nll"] != plain["test/nll"]


def test_mfu_is_of_the_models_products(tmp_path):
    job = tiny(steps=40, eval_every=0, peak_flops=1e9)
    train.fit(train.override(job, {"steps": 20}), tmp_path / "a", progress=False)
    first = json.loads((tmp_path / "a/starts.jsonl").read_text())
    assert first["step"] == 0 and abs(first["time"] - time.time()) < 600
    trained = [
        row
        for row in map(json.loads, (tmp_path / "a/metrics.jsonl").read_text().splitlines())
        if "loss" in row
    ]
    # 64 images of 8 x 8 through 32 units to 10 classes; the images need no gradient.
    flops = 2 * 64 * (2 * 64 * 32 + 3 * 32 * 10)
    for row in trained[1:]:
        np.testing.assert_allclose(row["mfu"], flops * row["steps_per_second"] / 1e9, rtol=2e-3)
        assert 0 < row["goodput"] <= 1


def test_goodput_counts_what_was_lost_and_the_time_between_starts(tmp_path):
    rows = [
        {"step": 10, "loss": 1.0, "steps_per_second": 0.0},  # compiled: not timed
        {"step": 20, "loss": 1.0, "steps_per_second": 10.0},
        {"step": 20, "test/nll": 1.0},
        {"step": 30, "loss": 1.0, "steps_per_second": 5.0},
    ]
    assert train.reporting.productive_seconds(rows) == (20 / 10 + 10 / 5, 30)
    assert train.reporting.productive_seconds([]) == (0.0, 0)
    workdir, hour = train.workdir.folder(tmp_path / "run"), 3600.0
    job = tiny(eval_every=0)
    train.fit(train.override(job, {"steps": 20}), workdir, progress=False)
    assert "mfu" not in (workdir / "metrics.jsonl").read_text()  # a CPU's peak is not known
    starts = workdir / "starts.jsonl"
    early = json.loads(starts.read_text()) | {"time": time.time() - hour}
    starts.write_text(json.dumps(early) + "\n")
    config = json.loads((workdir / "config.json").read_text()) | {"steps": 40}
    (workdir / "config.json").write_text(json.dumps(config))
    rows = train.loop.run(job, workdir, progress=False)[2]
    assert [json.loads(s)["step"] for s in starts.read_text().splitlines()] == [0, 20]
    seconds, step = train.reporting.productive_seconds(rows)
    assert step == 40
    goodput = [row["goodput"] for row in rows if "goodput" in row][-1]
    np.testing.assert_allclose(goodput, seconds / hour, rtol=0.05)
