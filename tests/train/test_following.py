"""Evaluation as a job of its own: every checkpoint once, nothing of the run's touched."""

import contextlib
import shutil
import signal
import threading

import pytest
from etils import epath

from tests.train.tiny import rows, tiny
from tinker import train
from tinker.numerics import UserError
from tinker.train import evaluation, following
from tinker.train.checkpoints import Checkpoints, Corrupt
from tinker.train.reporting import Reporter


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Learning curves take longer to draw than these runs take."""
    monkeypatch.setattr("tinker.train.reporting.curves", lambda *_: b"")


def config():
    """A run that saves where it evaluates, and so knows what a follower should find."""
    return tiny(steps=16, log_every=0, eval_every=4, checkpoint_every=4, keep=9)


def evaluated(folder):
    return [row for row in rows(folder) if "loss" not in row]


def contents(folder):
    """What is in a folder and when it was last written, a follower's part left out."""
    found = [path for path in folder.rglob("*") if folder / "eval" not in (path, *path.parents)]
    return {path: path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinker.train.reporting.curves", lambda *_: b"")
        train.fit(config(), workdir, progress=False)
    return workdir


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run, to spoil."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def evaluations(monkeypatch):
    """The (step, splits) that were evaluated; the values are stand-ins, the reading is real."""
    done = []

    def evaluator(workdir, config, splits, mesh):
        def evaluate(step, splits):
            with contextlib.closing(Checkpoints(workdir, read_only=True)) as saved:
                saved.read_meta(step)
            done.append((step, tuple(splits)))
            return {f"{split}/nll": 1.0 / step for split in splits}

        return {split: {f"{split}/nll"} for split in splits}, evaluate

    monkeypatch.setattr(following, "_evaluator", evaluator)
    return done


def test_it_follows_a_run_that_is_going_on(tmp_path, monkeypatch, capsys):
    """The trainer takes its next steps when the follower has seen the last ones, and not before."""
    workdir, seen = tmp_path / "run", threading.Semaphore(0)
    evaluate_split, save, measures = evaluation.evaluate_split, Checkpoints.save, []

    def paced(self, state, meta):
        save(self, state, meta)
        self.wait()
        if meta["step"] < 16:
            assert seen.acquire(timeout=240)

    make_measure = evaluation.make_measure

    def made(*args):
        measures.append(make_measure(*args))
        return measures[-1]

    trainer = threading.Thread(target=train.fit, args=(config(), workdir), daemon=True)
    started = False

    def counted(measure, *args):
        results = evaluate_split(measure, *args)
        if measures and measure is measures[-1]:
            seen.release()
        return results

    def begin(seconds):  # the first look finds no run
        nonlocal started
        if not started:
            started = True
            trainer.start()
        threading.Event().wait(seconds)

    monkeypatch.setattr(Checkpoints, "save", paced)
    monkeypatch.setattr(evaluation, "evaluate_split", counted)
    monkeypatch.setattr(following.evaluation, "make_measure", made)
    monkeypatch.setattr(following.time, "sleep", begin)
    found = train.follow(workdir, poll=0.05, timeout=240, progress=False)
    trainer.join(240)
    assert "waiting for a run in" in capsys.readouterr().err
    assert [row["step"] for row in found] == [4, 8, 12, 16]
    assert evaluated(workdir / "eval") == evaluated(workdir)
    assert measures[-1]._cache_size() == 1
    assert list((workdir / "eval" / "tensorboard").glob("events*"))
    assert (workdir / "eval" / "curves.png").exists()


def test_a_finished_run_is_evaluated_once_and_left_as_it_was(run, evaluations, tmp_path):
    before = contents(run)
    train.follow(run, poll=0.01, progress=False)
    assert evaluations == [(step, ("test",)) for step in (4, 8, 12, 16)]
    train.follow(run, poll=0.01, progress=False)
    assert len(evaluations) == 4
    train.follow(run, splits=("test", "validation"), poll=0.01, progress=False)
    assert evaluations[4:] == [(step, ("validation",)) for step in (4, 8, 12, 16)]
    train.follow(run, tmp_path / "elsewhere", poll=0.01, progress=False)
    assert len(evaluations) == 12 and len(rows(tmp_path / "elsewhere")) == 4
    assert contents(run) == before


def test_a_follower_that_was_stopped_goes_on(run, evaluations, monkeypatch, capsys):
    log = Reporter.log

    def interrupt(self, step, *args):
        log(self, step, *args)
        if step == 8:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Reporter, "log", interrupt)
    with pytest.raises(train.Interrupted) as stopped:
        train.follow(run, poll=0.01, progress=False)
    assert stopped.value.code == 143 and "evaluated up to step 8" in capsys.readouterr().err
    with open(run / "eval" / "metrics.jsonl", "a") as file:
        file.write('{"step": 12, "test/n')  # cut off by a kill
    monkeypatch.setattr(Reporter, "log", log)
    found = train.follow(run, poll=0.01, progress=False)
    assert [step for step, _ in evaluations] == [4, 8, 12, 16]
    assert [row["step"] for row in found] == [row["step"] for row in rows(run / "eval")]
    assert [row["step"] for row in found] == [4, 8, 12, 16]


def test_a_checkpoint_deleted_while_it_is_read_is_left_out(run, evaluations, monkeypatch, capsys):
    read_meta = Checkpoints.read_meta

    def deleted(self, step):
        if step == 8:
            shutil.rmtree(run / "checkpoints" / "8")
        return read_meta(self, step)

    monkeypatch.setattr(Checkpoints, "read_meta", deleted)
    train.follow(run, poll=0.01, progress=False)
    assert [step for step, _ in evaluations] == [4, 12, 16]
    assert "checkpoint 8 was deleted before it was read" in capsys.readouterr().err


@pytest.mark.parametrize("step", [8, 16])
def test_a_damaged_checkpoint_is_tried_again_then_left_out(run, evaluations, monkeypatch, step):
    tries, read_meta = [], Checkpoints.read_meta

    def damaged(self, at):
        tries.append(at)
        if at == step:
            raise Corrupt("meta: its checksum is wrong")
        return read_meta(self, at)

    monkeypatch.setattr(Checkpoints, "read_meta", damaged)
    if step == 16:
        with pytest.raises(UserError, match="the last checkpoint of .* 16, is damaged"):
            train.follow(run, poll=0.01, progress=False)
    else:
        train.follow(run, poll=0.01, progress=False)
    assert tries.count(step) == following.TRIES
    assert [s for s, _ in evaluations] == [s for s in (4, 8, 12, 16) if s != step]


def test_it_gives_up_when_nothing_comes(run, evaluations, tmp_path):
    with pytest.raises(UserError, match="no run began in .* for 0.1 s"):
        train.follow(tmp_path / "nothing", poll=0.01, timeout=0.1)
    shutil.rmtree(run / "checkpoints" / "16")
    with pytest.raises(UserError, match="no new checkpoint after step 12 of 16 in .* for 0.1 s"):
        train.follow(run, poll=0.01, timeout=0.1, progress=False)
    assert [step for step, _ in evaluations] == [4, 8, 12]


def test_what_cannot_be_followed_is_told(run, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="did you mean 'test'"):
        train.follow(run, splits=("tset",))
    with pytest.raises(UserError, match="is the run's own folder"):
        train.follow(run, run)
    monkeypatch.setattr(following, "build_metrics", lambda config: {})
    with pytest.raises(UserError, match="has none for split 'test'"):
        train.follow(run)
    monkeypatch.undo()
    assert not (run / "eval").exists()
    other = epath.Path(tmp_path / "other")
    train.workdir.claim_config(other, tiny(steps=3))
    with pytest.raises(UserError, match="another config: .*steps is 3 there, 16 here"):
        train.follow(run, other)
