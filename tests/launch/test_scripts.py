"""The scripts are run by a real shell, with stand-ins for the engines' commands."""

import functools
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.conftest import make
from tinker.launch import slurm, tpu_vm, xpk
from tinker.launch.jobs import run_all


def words(workdir):
    return ["train", f"--config={workdir}/launch/config.json", f"--workdir={workdir}"]


# Slurm.

SRUN = "import subprocess; flags = [a for a in sys.argv[1:] if a[:2] == '--'][:2]\n"
SRUN += "os.execvp(sys.argv[1 + len(flags)], sys.argv[1 + len(flags):])\n"


def batch(tools, job, *, code=0, state="RUNNING", **env):
    """Runs a batch script; ``python`` of the job exits with ``code``."""
    tools.add("srun", SRUN)
    tools.add("python", f"sys.exit({code})")
    tools.add("squeue", f"print({state!r})")
    tools.add("scontrol")
    script = slurm.script(job, python=str(tools.folder / "python"))
    return tools.bash(script, SLURM_JOB_ID=7, SLURM_LOCALID=1, **env)


def test_slurm_runs_the_words_it_was_given(tools, awkward):
    workdir = f"/shared/{awkward}"
    done = batch(tools, make(workdir, env={"A": awkward}, setup=("export B=b",)))
    assert done.returncode == 0 and done.stderr == ""
    (call,) = tools.called("python")
    assert call["argv"] == ["-m", "tinker.cli", *words(workdir)]
    assert call["env"]["A"] == awkward and call["env"]["B"] == "b"
    assert "JAX_LOCAL_DEVICE_IDS" not in call["env"] and "SRUN_CPUS_PER_TASK" not in call["env"]


def test_slurm_gives_each_process_its_gpus_and_its_cpus(tools, awkward):
    workdir = f"/shared/{awkward}"
    batch(tools, make(workdir, processes=2, devices=4), SLURM_CPUS_PER_TASK=6)
    (call,) = tools.called("python")
    assert call["argv"] == ["-m", "tinker.cli", *words(workdir)]
    assert call["env"]["JAX_LOCAL_DEVICE_IDS"] == "4,5,6,7"
    assert call["env"]["SRUN_CPUS_PER_TASK"] == "6"


@pytest.mark.parametrize(
    "code, state, restarts, requeued",
    [
        (0, "RUNNING", None, False),
        (1, "RUNNING", None, False),  # a fault of the program
        (2, "RUNNING", None, False),  # a mistake of the user's
        (130, "RUNNING", None, False),  # Ctrl-C, by hand
        (143, "RUNNING", None, True),  # it has saved
        (143, "RUNNING", 99, True),
        (143, "COMPLETING", None, False),  # it was cancelled
        (134, "RUNNING", None, True),  # a process was lost
        (137, "RUNNING", 2, True),
        (137, "RUNNING", 3, False),
        (137, "CANCELLED", None, False),
    ],
)
def test_slurm_goes_back_into_the_queue_when_it_should(tools, code, state, restarts, requeued):
    env = {} if restarts is None else {"SLURM_RESTART_COUNT": restarts}
    done = batch(tools, make(restarts=3), code=code, state=state, **env)
    assert done.returncode == code
    assert [call["argv"] for call in tools.called("scontrol")] == [["requeue", "7"]] * requeued


def test_a_task_of_a_slurm_array_is_a_point_and_goes_back_alone(tools):
    env = {"SLURM_ARRAY_JOB_ID": 5, "SLURM_ARRAY_TASK_ID": 2}
    batch(tools, make("/w", points=3), code=143, **env)
    (call,) = tools.called("python")
    assert call["argv"] == ["-m", "tinker.cli", *words("/w"), "--sweep_index=2"]
    assert tools.called("scontrol")[0]["argv"] == ["requeue", "5_2"]
    assert tools.called("squeue")[0]["argv"][-1] == "--jobs=5_2"


def test_slurm_does_not_run_after_a_setup_that_failed(tools):
    done = batch(tools, make(setup=("cd /nowhere/at/all",)))
    assert done.returncode == 1 and not tools.called("python")


def test_slurm_waits_for_a_run_that_saves(tools):
    """SIGTERM may come to the batch script too."""
    job, marker = make(), tools.folder / "begun"
    batch(tools, job)  # writes the stand-ins
    body = f"import signal, time\nopen({str(marker)!r}, 'w')\n"
    body += "signal.signal(15, lambda *_: (time.sleep(0.5), sys.exit(143)))\ntime.sleep(30)\n"
    tools.add("python", body)
    script = slurm.script(job, python=str(tools.folder / "python"))
    running = subprocess.Popen(
        ["bash", "-c", script], env={**tools.env, "SLURM_JOB_ID": "7"}, start_new_session=True
    )
    wait_for(marker.exists)
    os.killpg(running.pid, signal.SIGTERM)
    assert running.wait(20) == 143
    assert tools.called("scontrol")


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# xpk.

# Of xpk's own: how it starts the command, and passes SIGTERM on.
CONTAINER = """
_sigterm() (kill -SIGTERM $! 2>/dev/null;);
trap _sigterm SIGTERM;
({command}) & PID=$!;
while kill -0 $PID 2>/dev/null;
    do sleep 0.2;
done;
wait $PID;
exit $?
"""


def xpk_command(job):
    (words,) = xpk.workloads(job)
    (flag,) = [word for word in words if word.startswith("--command=")]
    return CONTAINER.replace("{command}", flag.removeprefix("--command="))


def test_xpk_runs_the_words_it_was_given(tools, awkward):
    tools.add("tinker", "sys.exit(5)")
    workdir = f"gs://bucket/{awkward}"
    settings = {"tpu": "t", "cluster": "c", "image": "i", "env": {"A": awkward}}
    done = tools.bash(xpk_command(make(workdir, **settings, setup=("export B=b",))))
    assert done.returncode == 5 and done.stderr == ""
    (call,) = tools.called("tinker")
    assert call["argv"] == words(workdir)
    assert call["env"]["A"] == awkward and call["env"]["B"] == "b"


def test_sigterm_reaches_a_run_of_xpk(tools):
    """xpk signals its subshell alone, so the run must be that."""
    marker = tools.folder / "begun"
    body = "import signal, time\nsignal.signal(15, lambda *_: sys.exit(77))\n"  # the run's own
    tools.add("tinker", f"{body}open({str(marker)!r}, 'w')\ntime.sleep(30)\n")
    job = make("gs://b/r", tpu="t", cluster="c", image="i", setup=("trap : USR1",))
    running = subprocess.Popen(["bash", "-c", xpk_command(job)], env=tools.env)
    wait_for(marker.exists)
    running.terminate()
    assert running.wait(20) == 77


@pytest.mark.parametrize(
    "name, suffix, wanted",
    [
        ("vit", "", "vit"),
        ("My Run_2", "-3", "my-run-2-3"),
        ("2024.ViT", "", "run-2024-vit"),
        ("a" * 60, "-12", "a" * 37 + "-12"),
    ],
)
def test_a_workload_has_a_name_that_kubernetes_takes(name, suffix, wanted):
    assert xpk._name(name, suffix) == wanted


# TPU VMs.

GCLOUD = """
import shlex, subprocess
argv = sys.argv[1:]
if argv[:2] == ["storage", "cat"]:
    print(open(os.environ["BUCKET"]).read())
    sys.exit(0 if argv[2] == os.environ["OBJECT"] else 1)
command = [a for a in argv if a.startswith("--command=")][0].removeprefix("--command=")
sys.exit(subprocess.call(["sh", "-c", command], env=dict(os.environ, HOME=os.environ["HOME"])))
"""


class Pod:
    """A stand-in for a TPU VM of one worker, whose ``tinker`` runs ``body``."""

    def __init__(self, tools, job, body=""):
        self.tools, self.job, self.plan = tools, job, tpu_vm.plan(job)
        tools.add("gcloud", GCLOUD)
        tools.add("tinker", body)
        (tools.folder / "object").write_text(self.plan.files["tpu_vm.sh"])
        place = f"{job.workdir}/launch/tpu_vm.sh"
        self.env = {**tools.env, "BUCKET": str(tools.folder / "object"), "OBJECT": place}

    def launch(self):
        (command,) = self.plan.commands
        options = dict(env=self.env, stdout=subprocess.PIPE, text=True, start_new_session=True)
        # Under nohup SIGHUP is ignored, which a started process would inherit.
        mend = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)
        return subprocess.Popen(command, preexec_fn=mend, **options)

    def ended(self):
        running = self.launch()
        out = running.communicate(timeout=60)[0]
        return running.returncode, out


def test_every_worker_of_a_tpu_runs_the_words_it_was_given(tools, awkward):
    workdir = f"gs://bucket/{awkward}"
    job = make(workdir, tpu="pod", env={"A": awkward}, setup=("export B=b",))
    code, out = Pod(tools, job, "print('step 1'); sys.exit(2)").ended()
    assert code == 2 and "] step 1\n" in out
    (call,) = tools.called("tinker")
    assert call["argv"] == words(workdir)
    assert call["env"]["A"] == awkward and call["env"]["B"] == "b"


@pytest.mark.parametrize(
    "codes, runs", [([0], 1), ([1], 1), ([143], 1), ([130], 1), ([137, 134, 0], 3), ([137] * 9, 3)]
)
def test_a_killed_run_starts_again_on_a_tpu(tools, codes, runs):
    body = "import pathlib; p = pathlib.Path('count'); n = int(p.read_text()) if p.exists() else 0"
    body = f"import os; os.chdir(os.environ['HOME']); {body}; p.write_text(str(n + 1))\n"
    code, _ = Pod(
        tools, make("gs://b/r", tpu="pod", restarts=2), f"{body}sys.exit({codes}[n])"
    ).ended()
    assert code == codes[runs - 1] and len(tools.called("tinker")) == runs


def test_a_lost_connection_to_a_tpu_ends_nothing_and_the_same_command_connects_again(tools):
    end = tools.folder / "end"
    body = f"import time\nprint('begun', flush=True)\nwhile not os.path.exists({str(end)!r}):\n"
    pod = Pod(tools, make("gs://b/r", tpu="pod"), f"{body}    time.sleep(0.05)\nprint('done')")
    first = pod.launch()
    assert "begun" in first.stdout.readline()
    os.killpg(first.pid, signal.SIGHUP)
    first.wait(20)
    second = pod.launch()
    assert "begun" in second.stdout.readline()
    end.touch()
    assert "done" in second.communicate(timeout=30)[0]
    assert second.returncode == 0 and len(tools.called("tinker")) == 1


def test_a_run_on_a_tpu_is_stopped_as_told(tools):
    body = "import signal, time\nsignal.signal(15, lambda *_: (time.sleep(0.5), sys.exit(77)))\n"
    pod = Pod(
        tools, make("gs://b/r", tpu="pod"), f"{body}print('begun', flush=True)\ntime.sleep(30)"
    )
    running = pod.launch()
    assert "begun" in running.stdout.readline()
    stop = pod.plan.note.splitlines()[-1].strip()
    subprocess.run(["bash", "-c", stop], env=pod.env, check=True)
    running.communicate(timeout=30)
    assert running.returncode == 77 and len(tools.called("tinker")) == 1


def test_a_script_that_is_not_there_is_no_success(tools):
    pod = Pod(tools, make("gs://b/r", tpu="pod"))
    pod.env["OBJECT"] = "gs://b/other"
    assert pod.ended()[0] == 1 and not tools.called("tinker")


def test_commands_stop_at_the_first_that_fails(tmp_path, capfd):
    plan = slurm.plan(make())
    python = [sys.executable, "-c"]
    assert run_all([[*python, "print(len(input()))"]], plan) == 0
    assert capfd.readouterr().out == f"{len('#!/bin/bash')}\n"
    assert run_all([[*python, "exit(3)"], [*python, "print('never')"]], plan) == 3
    assert run_all([[*python, "import os; os.kill(os.getpid(), 15)"]], plan) == 143
    assert capfd.readouterr().out == ""
