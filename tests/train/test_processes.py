"""Several processes as one job: the numbers of one, its order, its checkpoints; and faults."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.train.tiny import bits, rows, tiny
from tinker import train
from tinker.numerics import UserError
from tinker.train.processes import join_processes

SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import jax
from tinker.train.processes import join_processes
join_processes({coordinator!r}, {count}, int(sys.argv[1]))
from tests.train.tiny import tiny
from tinker import train
config = tiny(**{changes!r})
{before}
(train.run_sweep if config.sweep else train.fit)(config, {workdir!r}, progress=False)
"""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def launch(count, workdir, before="", **changes):
    """Starts a job of so many processes, a device each; ``before`` is code that each runs first."""
    coordinator = f"127.0.0.1:{free_port()}"
    given = dict(root=str(ROOT), coordinator=coordinator, count=count, changes=changes)
    given["before"] = before
    script = SCRIPT.format(workdir=str(workdir), **given)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    options = dict(env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    options |= dict(stderr=subprocess.PIPE, text=True)
    command = [sys.executable, "-c", script]
    return [subprocess.Popen([*command, str(i)], **options) for i in range(count)]


def finish(processes, timeout=300):
    """What they said, when all of them have ended."""
    try:
        return [p.communicate(timeout=timeout)[1] for p in processes]
    finally:
        for p in processes:
            p.kill()


def until(condition, processes, timeout=240):
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout, "waited too long"
        assert all(p.poll() is None for p in processes), finish(processes)
        time.sleep(0.05)


def steps_of(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


def close(workdir, other):
    """Whether two runs have the same rows, to the last bits of a sum in another order."""
    for a, b in zip(rows(workdir), rows(other), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=2e-6, err_msg=name)


# 1437 examples: the last batch of an epoch, of 29, has fewer than half a batch.
JOB = dict(log_every=1, eval_every=0, checkpoint_every=0, steps=30)


def test_two_processes_take_the_steps_of_one(tmp_path):
    processes = launch(2, tmp_path / "two", **JOB)
    state, _ = train.fit(tiny(**JOB), tmp_path / "one", progress=False)
    said = finish(processes)
    assert [p.returncode for p in processes] == [0, 0], said
    close(tmp_path / "two", tmp_path / "one")
    restored = train.restore(tmp_path / "two")[1]  # what two saved, one reads
    for a, b in zip(jax.tree.leaves(restored.trainable), jax.tree.leaves(state.trainable)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for i in range(2):
        log = (tmp_path / "two" / "logs" / f"process-{i}.log").read_text()
        assert f"process {i} of 2 on {socket.gethostname()}" in log
        assert '"step": 30' in log and log.rstrip().endswith("finished")


def test_a_signal_to_one_process_saves_the_same_step_in_all(tmp_path):
    processes = launch(2, tmp_path, **JOB | {"steps": 100_000})
    until(lambda: len(steps_of(tmp_path)) > 3, processes)
    processes[1].send_signal(signal.SIGTERM)
    said = finish(processes)
    assert [p.returncode for p in processes] == [143, 143], said
    assert "SIGTERM: saved step" in said[0]
    step = train.restore(tmp_path)[1].step
    assert 0 < step < 100_000 and f"saved step {step}" in said[0]


# In process 1 alone.
BREAKS = """
from tinker.train import feeding
read, count = feeding.Ahead._read, []
def broken(self, iterators):
    count.append(1)
    if jax.process_index() == 1 and len(count) == 40:
        raise OSError("no such disk")
    return read(self, iterators)
feeding.Ahead._read = broken
"""
OTHER_CONFIG = "config.batch_size = 32 if jax.process_index() else 64"


@pytest.mark.deep
@pytest.mark.parametrize(
    "before, why",
    [(BREAKS, "OSError: no such disk"), (OTHER_CONFIG, "batch_size is 64 there, 32 here")],
)
def test_a_process_that_fails_by_itself_ends_the_others_with_its_code(before, why, tmp_path):
    """It would wait at its exit for the others, and they in a step for it."""
    processes, ended = launch(2, tmp_path, before, **JOB | {"steps": 100_000}), {}
    until(lambda: (tmp_path / "config.json").exists(), processes)
    while len(ended) < 2:
        ended |= {i: time.monotonic() for i in (0, 1) if i not in ended and processes[i].poll()}
        time.sleep(0.05)
    said = finish(processes)
    assert [p.returncode for p in processes] == [1, 1], said
    assert abs(ended[0] - ended[1]) < 30
    assert f"process 1 on {socket.gethostname()} failed: " in said[0] and why in said[0]
    assert "Traceback" not in said[0] and why in said[1].splitlines()[-1]


@pytest.mark.deep
def test_processes_that_hold_the_same_rows_read_them(tmp_path):
    """Over ``tensor`` alone nothing of a batch is split: every process needs all of it."""
    meshes = {"tensor": (2, {"data": 1, "tensor": 2}), "both": (4, {"data": 2, "tensor": 2})}
    train.fit(tiny(**JOB), tmp_path / "one", progress=False)
    for name, (count, mesh) in meshes.items():
        processes = launch(count, tmp_path / name, **JOB, mesh=mesh)
        said = finish(processes)
        assert [p.returncode for p in processes] == [0] * count, said
        close(tmp_path / name, tmp_path / "one")


UNREADABLE = """
from tinker.train.checkpoints import Checkpoints
keep = Checkpoints.__init__
def hurt(self, *args, **keywords):
    keep(self, *args, **keywords)
    restore = self.reader.restore
    def unable(path, *args, **keywords):
        if jax.process_index() == 1 and path.name == "30":
            raise OSError("a shard is gone")
        return restore(path, *args, **keywords)
    self.reader.restore = unable
Checkpoints.__init__ = hurt
"""


@pytest.mark.deep
def test_a_checkpoint_that_one_process_cannot_read_is_read_by_none(tmp_path):
    job = JOB | {"checkpoint_every": 15}
    finish(launch(2, tmp_path, **job))
    before = rows(tmp_path)
    processes = launch(2, tmp_path, UNREADABLE, **job)
    said = finish(processes)
    assert [p.returncode for p in processes] == [0, 0], said
    assert "process 1 cannot read it" in said[0] and "at step 15" in said[0]
    assert rows(tmp_path) == before
    assert [p.name for p in (tmp_path / "checkpoints_bad").iterdir()] == ["30"]


@pytest.mark.deep
def test_a_sweep_of_two_processes_is_stopped_and_goes_on(tmp_path):
    """The second point has fewer steps than the first: no number of steps tells where to stop."""
    job = JOB | {"log_every": 5, "sweep": [{"steps": 60}, {"steps": 20}, {"steps": 50}]}
    processes = launch(2, tmp_path, **job)
    until(lambda: len(steps_of(tmp_path / "steps=60")) > 11, processes)  # its last step is logged
    processes[1].send_signal(signal.SIGTERM)
    said = finish(processes)
    assert [p.returncode for p in processes] == [143, 143], said
    assert len(list(tmp_path.glob("*/result.json"))) < 3
    processes = launch(2, tmp_path, **job)
    said = finish(processes)
    assert [p.returncode for p in processes] == [0, 0], said
    table = json.loads((tmp_path / "sweep.json").read_text())["points"]
    assert [row["status"] for row in table] == ["finished"] * 3
    train.fit(tiny(**JOB | {"log_every": 5, "steps": 50}), tmp_path / "alone", progress=False)
    close(tmp_path / "steps=50", tmp_path / "alone")


@pytest.mark.deep
def test_a_killed_process_ends_the_others_and_is_named(tmp_path):
    job = JOB | {"steps": 100_000, "checkpoint_every": 20}
    processes = launch(2, tmp_path, **job)
    until(lambda: len(steps_of(tmp_path)) > 50, processes)
    processes[1].kill()
    killed = time.monotonic()
    said = finish(processes, timeout=60)
    assert time.monotonic() - killed < 30
    assert processes[0].returncode not in (0, None)
    assert f"process 1 on {socket.gethostname()}" in said[0]
    again = launch(2, tmp_path, **job)
    until(lambda: len(steps_of(tmp_path)) > 100, again)
    for p in again:
        p.send_signal(signal.SIGTERM)
    said = finish(again)
    assert "resuming" in said[0] and [p.returncode for p in again] == [143, 143]


@pytest.mark.deep
def test_four_processes_save_what_one_and_two_go_on_with(tmp_path):
    half = JOB | {"checkpoint_every": 15}
    processes = launch(4, tmp_path / "four", **half)
    said = finish(processes)
    assert [p.returncode for p in processes] == [0] * 4, said
    train.fit(tiny(**half), tmp_path / "one", progress=False)
    close(tmp_path / "four", tmp_path / "one")
    import shutil

    for count in (1, 2):
        folder = tmp_path / f"from-four-by-{count}"
        shutil.copytree(tmp_path / "four", folder)
        shutil.rmtree(folder / "checkpoints" / "30")
        processes = launch(count, folder, **half)
        said = finish(processes)
        assert [p.returncode for p in processes] == [0] * count, said
        assert "at step 15" in said[0]
        close(folder, tmp_path / "one")
        restored = bits(train.restore(folder)[1])
        assert restored.keys() == bits(train.restore(tmp_path / "one")[1]).keys()


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(processes=2), "--coordinator is not given"),
        (dict(coordinator="a:1", process_id=0), "--processes is not given"),
        (dict(coordinator="a:1", processes=2, process_id=2), "not in .0, 2"),
        (dict(coordinator="a", processes=2, process_id=0), "not of the form HOST:PORT"),
    ],
)
def test_what_cannot_be_a_job_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        join_processes(**given)


def test_a_process_may_be_a_job_of_its_own():
    join_processes(processes=1)
    jax.devices()  # it has begun to compute
    join_processes()
    assert not jax.distributed.is_initialized()
