"""Workdirs in an object store: real clients, on a bucket that cannot rename, append or copy."""

import importlib.util
import json
import signal
import subprocess
import sys
import time

import pytest
from etils import epath

from tests import bucket as buckets
from tests.train.tiny import bits, rows, tiny
from tinker import train
from tinker.cli import main
from tinker.numerics import UserError
from tinker.study import run_study
from tinker.train import workdir
from tinker.train.reporting import Reporter
from tinker.train.specs import Config

pytest.importorskip("gcsfs", reason="needs the extra `gcs`")


@pytest.fixture(scope="module")
def bucket():
    with buckets.serve() as served, pytest.MonkeyPatch.context() as patch:
        for key, value in served.env.items():
            patch.setenv(key, value)
        yield served
    assert served.refused == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in a folder: (workdir, state, results)."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, *train.fit(tiny(), folder, progress=False)


def same(found, results, whole, place):
    assert bits(found) == bits(whole[1]) and results == whole[2]
    assert rows(epath.Path(place)) == rows(whole[0])
    assert sorted(int(p.name) for p in epath.Path(place, "checkpoints").iterdir()) == [20, 30, 40]


def test_a_run_is_that_of_a_folder_however_it_is_stopped(bucket, whole, monkeypatch, capsys):
    place, log = "gs://bucket/a run/vit", Reporter.log

    def interrupt(self, step, values, *args):
        log(self, step, values, *args)
        if step == 20 and "loss" in values:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Reporter, "log", interrupt)
    with pytest.raises(train.Interrupted) as stopped:
        train.fit(tiny(), place, progress=False)
    monkeypatch.setattr(Reporter, "log", log)
    assert stopped.value.code == 143 and 0 < stopped.value.step < 40
    same(*train.fit(tiny(), place, progress=False), whole, place)
    assert "bit for bit" in capsys.readouterr().err
    same(*train.fit(tiny(), place, progress=False), whole, place)  # finished: nothing to do
    names = bucket.names("a run/vit")
    assert {"a run/vit/config.json", "a run/vit/curves.png"} <= set(names)
    assert any("tensorboard/events" in name for name in names)
    assert bits(train.restore(place)[1]) == bits(whole[1])
    with pytest.raises(UserError, match="another config: seed is 0 there, 1 here"):
        train.fit(tiny(seed=1), place, progress=False)

    state = max(bucket.names("a run/vit/checkpoints/40/state"), key=lambda n: len(bucket.read(n)))
    content = bytearray(bucket.read(state))
    content[len(content) // 2] ^= 1
    bucket.put(state, bytes(content))
    same(*train.fit(tiny(), place, progress=False), whole, place)
    assert "checkpoint 40 in gs://bucket/a run/vit is damaged" in capsys.readouterr().err
    assert bucket.read(state.replace("checkpoints", "checkpoints_bad")) == content  # moved


@pytest.mark.deep
def test_sweeps_traces_and_evaluations_go_to_a_bucket(bucket):
    config = tiny(steps=6, log_every=3, eval_every=0, checkpoint_every=3)
    config.sweep = {"seed": [0, 1]}
    found = train.run_sweep(config, "gs://bucket/sweep", progress=False)
    assert [row["status"] for row in found] == ["finished", "finished"]
    assert json.loads(bucket.read("sweep/sweep.json"))["points"] == found
    assert bucket.read("sweep/sweep.png")[:4] == b"\x89PNG"
    assert train.run_sweep(config, "gs://bucket/sweep", progress=False) == found
    evaluated = train.follow("gs://bucket/sweep/seed=0", poll=0.1, progress=False)
    assert [row["step"] for row in evaluated] == [3, 6]
    train.fit(tiny(steps=6, profile="2:4"), "gs://bucket/traced", progress=False)
    assert any(name.endswith(".xplane.pb") for name in bucket.names("traced/profile"))


def experiment(config, key):
    return {"test/x": config.shift}


def test_a_study_goes_to_a_bucket(bucket):
    claim = {"metric": "test/x", "arm": "b", "over": "a", "at_least": 0.5, "primary": True}
    study = Config(
        {
            "experiment": "tests.train.test_bucket:experiment",
            "seeds": 3,
            "shift": 0.0,
            "arms": {"a": {}, "b": {"shift": 1.0}},
            "claims": [claim | {"deterministic": True}],
        }
    )
    found = run_study(study, "gs://bucket/study", name="x")
    assert found["verdict"] == "supported" and len(bucket.names("study/runs/")) == 6
    assert run_study(study, "gs://bucket/study", name="x")["values"] == found["values"]


RUN = """
import sys
from tests.train.tiny import tiny
from tinker import train
train.fit(tiny(steps=int(sys.argv[2]), checkpoint_every=5, keep=99), sys.argv[1], progress=False)
"""


@pytest.mark.deep
def test_a_follower_sees_what_another_process_writes(bucket, monkeypatch):
    """Clients remember what a folder held; a follower must not."""
    place = "gs://bucket/followed"
    other = subprocess.Popen([sys.executable, "-c", RUN, place, "60"])
    found = train.follow(place, poll=0.2, timeout=240, progress=False)
    assert other.wait(60) == 0
    assert [row["step"] for row in found] == list(range(5, 61, 5))


@pytest.mark.deep
def test_a_killed_run_in_a_bucket_goes_on(bucket, tmp_path):
    place = "gs://bucket/killed"
    for at in (10, 25, 35):
        other = subprocess.Popen([sys.executable, "-c", RUN, place, "50"])
        while not any(n.startswith(f"killed/checkpoints/{at}/") for n in bucket.names("killed")):
            assert other.poll() is None
            time.sleep(0.01)
        other.kill()
        other.wait()
    assert subprocess.run([sys.executable, "-c", RUN, place, "50"], check=False).returncode == 0
    state, _ = train.fit(tiny(steps=50, checkpoint_every=5), tmp_path, progress=False)
    assert bits(train.restore(place)[1]) == bits(state)
    assert rows(epath.Path(place)) == rows(tmp_path)


@pytest.mark.deep
def test_two_processes_share_a_bucket(bucket):
    from tests.train.test_processes import finish, launch

    processes = launch(2, "gs://bucket/two", steps=20, checkpoint_every=10)
    said = finish(processes)
    assert [p.returncode for p in processes] == [0, 0], said
    for i in range(2):
        assert bucket.read(f"two/logs/process-{i}.log").decode().rstrip().endswith("finished")
    processes = launch(2, "gs://bucket/two", steps=20, checkpoint_every=10)
    finish(processes)
    assert bucket.read("two/logs/process-1.log").count(b"finished") == 2


def test_what_cannot_hold_a_workdir_is_told_in_a_line(bucket, tmp_path, monkeypatch, capsys):
    job = tmp_path / "job.py"
    job.write_text("from tests.train.tiny import tiny\ndef get_config(): return tiny(steps=1)\n")

    def told(place):
        assert main(["train", f"--config={job}", f"--workdir={place}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "a workdir is a folder, or gs://BUCKET/FOLDER" in told("s3://bucket/run")
    assert "gs://none/run cannot be used: " in told("gs://none/run")
    find = importlib.util.find_spec
    missing = ("gcsfs", "tensorflow")
    monkeypatch.setattr(
        workdir.importlib.util, "find_spec", lambda n, *a: None if n in missing else find(n, *a)
    )
    assert "gs://bucket/run needs gcsfs: pip install 'tinker-jax[gcs]'" in told("gs://bucket/run")
