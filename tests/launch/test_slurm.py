"""A real Slurm of one node, started here: what it makes of the scripts, and what becomes of jobs.

Run with ``pytest -n 0 -m engines tests/launch/test_slurm.py``, as root, after
``apt-get install --no-install-recommends slurm-wlm munge``.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.launch import cluster
from tests.launch.test_local import processes as local_processes

pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not cluster.installed(), reason="needs Debian's slurm-wlm and munge, as root"
    ),
]

JOB = """
from tests.train.tiny import tiny

def get_config():
    return tiny(steps={steps}, log_every=5, eval_every=0, checkpoint_every=5)
"""


@pytest.fixture(scope="module")
def slurm():
    folder = Path(tempfile.mkdtemp(prefix="tinker-slurm-"))
    with cluster.slurm(folder) as env:
        yield {**env, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "job.py"
    path.write_text(JOB.format(steps=60))
    return path


def launch(slurm, job, workdir, *flags, check=True):
    """``tinker launch``; gives the job's number, or what was said where that was refused."""
    command = [sys.executable, "-m", "tinker.cli", "launch", "--on=slurm"]
    command += [f"--config={job}", f"--workdir={workdir}", *flags]
    done = subprocess.run(command, env=slurm, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()[-1] if check and "--dry_run" not in flags else done


def state(slurm, number):
    command = ["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={number}"]
    return cluster.ask(slurm, *command).strip()


def wait_for(slurm, number, *wanted, seconds=600):
    end, last = time.monotonic() + seconds, None
    while last not in wanted:
        assert time.monotonic() < end, f"job {number} is {last}, not {wanted}"
        time.sleep(0.3)
        last = state(slurm, number)
    return last


def start(slurm, number):
    """Starts a job that was requeued before its two minutes are over."""
    time.sleep(10)  # until the node has forgotten it, or it refuses the job
    cluster.ask(slurm, "scontrol", "update", f"JobId={number}", "StartTime=now", check=True)


def wait_for_checkpoint(workdir, seconds=600):
    end, saved = time.monotonic() + seconds, workdir / "checkpoints"
    while not (saved.exists() and any(p.name.isdigit() for p in saved.iterdir())):
        assert time.monotonic() < end, f"no checkpoint; {_logs(workdir)}"
        time.sleep(0.1)


def _logs(workdir):
    return "\n".join(path.read_text() for path in sorted((workdir / "logs").iterdir()))


def steps(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row["step"] for row in map(json.loads, lines) if "loss" in row]


def test_sbatch_accepts_the_script_and_refuses_a_wrong_one(slurm, job, tmp_path, awkward):
    workdir = tmp_path / awkward
    flags = ["--dry_run", "--config.launch.processes=2", "--config.launch.time=10"]
    done = launch(slurm, job, workdir, *flags)
    assert "Job 1 to start at" in done.stderr or "to start at" in done.stderr
    assert not workdir.exists()
    done = launch(slurm, job, workdir, *flags, "--config.launch.partition=none", check=False)
    assert done.returncode == 1 and "invalid partition" in done.stderr
    sweep = ["--sweep.seed=0,1,2", "--config.launch.parallel=1"]
    launch(slurm, job, workdir, *flags, *sweep)


def test_a_preempted_job_saves_and_goes_on(slurm, job, tmp_path, awkward):
    """Two processes, which JAX finds by itself; another job takes the node from them."""
    job.write_text(JOB.format(steps=400))
    workdir = tmp_path / awkward.replace("\\", "")
    number = launch(slurm, job, workdir, "--config.launch.processes=2")
    wait_for_checkpoint(workdir)
    urgent = ["sbatch", "--partition=high", "--ntasks=4", "--output=/dev/null", "--wrap=sleep 1"]
    urgent = cluster.ask(slurm, *urgent, check=True).split()[-1]
    wait_for(slurm, number, "PENDING", seconds=120)
    wait_for(slurm, urgent, "COMPLETED")
    text = _logs(workdir)
    assert "SIGTERM: saved step" in text and "exit code 143: going back into the queue" in text
    before = steps(workdir)
    assert before[-1] < 400
    start(slurm, number)
    assert wait_for(slurm, number, "COMPLETED", "FAILED", "TIMEOUT") == "COMPLETED", _logs(workdir)
    assert "resuming" in _logs(workdir)
    after = steps(workdir)
    assert after[: len(before)] == before and after[-1] == 400 and after == sorted(set(after))


def test_a_job_that_loses_a_process_goes_back_as_often_as_it_may(slurm, job, tmp_path):
    job.write_text(JOB.format(steps=100_000))
    flags = ["--config.launch.processes=2", "--config.launch.restarts=1"]
    number = launch(slurm, job, tmp_path / "run", *flags)
    for left in ("PENDING", "FAILED"):
        wait_for(slurm, number, "RUNNING")
        rows = len(steps(tmp_path / "run")) if left == "FAILED" else 0
        wait_for_checkpoint(tmp_path / "run")
        while len(steps(tmp_path / "run")) < rows + 4:
            time.sleep(0.2)
        os.kill(max(local_processes(f"--workdir={tmp_path}/run")), signal.SIGKILL)
        assert wait_for(slurm, number, "PENDING", "FAILED", "COMPLETED", seconds=120) == left
        if left == "PENDING":
            start(slurm, number)
    assert "resuming" in _logs(tmp_path / "run")


def test_a_cancelled_job_stays_cancelled(slurm, job, tmp_path):
    job.write_text(JOB.format(steps=100_000))
    number = launch(slurm, job, tmp_path / "run")
    wait_for_checkpoint(tmp_path / "run")
    cluster.ask(slurm, "scancel", number)
    assert wait_for(slurm, number, "CANCELLED", "PENDING", "COMPLETED") == "CANCELLED"
    time.sleep(3)
    assert state(slurm, number) == "CANCELLED"


def test_a_time_limit_is_a_reason_to_go_on(slurm, job, tmp_path):
    """Slurm warns the run; its clock has minutes, so the warning comes at the start."""
    job.write_text(JOB.format(steps=100_000))
    flags = ["--config.launch.time=2", "--config.launch.flags=('--signal=TERM@90',)"]
    number = launch(slurm, job, tmp_path / "run", *flags)
    wait_for(slurm, number, "RUNNING", "COMPLETING")
    assert wait_for(slurm, number, "PENDING", "TIMEOUT", "FAILED") == "PENDING"
    assert "exit code 143: going back into the queue" in _logs(tmp_path / "run")
    cluster.ask(slurm, "scancel", number)


def test_a_job_that_fails_by_itself_ends(slurm, job, tmp_path):
    job.write_text(JOB.format(steps=10))
    flags = ["--config.loss.fn=tests.train.tiny:spoiled_loss", "--config.loss.at=3"]
    flags += ["--config.loss.inputs=('logits', 'label', 'step')"]
    number = launch(slurm, job, tmp_path / "run", *flags)
    assert wait_for(slurm, number, "FAILED", "COMPLETED") == "FAILED"
    assert "going back" not in _logs(tmp_path / "run")


def test_a_sweep_is_an_array_of_its_points(slurm, job, tmp_path):
    job.write_text(JOB.format(steps=10))
    workdir = tmp_path / "sweep"
    number = launch(slurm, job, workdir, "--sweep.seed=0,1", "--config.launch.parallel=1")
    for task in (f"{number}_0", f"{number}_1"):
        assert wait_for(slurm, task, "COMPLETED", "FAILED") == "COMPLETED", _logs(workdir)
    assert sorted(p.parent.name for p in workdir.glob("*/result.json")) == ["seed=0", "seed=1"]
    assert len(list((workdir / "logs").glob("slurm-*_*.log"))) == 2
