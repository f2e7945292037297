"""Several processes on this machine: what is shown and kept, and that one that fails ends all."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.conftest import make
from tests.launch.test_scripts import wait_for
from tinker.launch import local
from tinker.launch.jobs import Plan

HEAD = "import os, signal, sys, time\nme = int(os.environ['ME'])\n"


def launch(tmp_path, *bodies, restarts=0):
    """Runs processes with these bodies; gives the status and the seconds."""
    (tmp_path / "logs").mkdir(exist_ok=True)
    python = [sys.executable, "-u", "-c"]
    commands = [["env", f"ME={i}", *python, HEAD + body] for i, body in enumerate(bodies)]
    start = time.monotonic()
    job = make(tmp_path, processes=len(bodies), restarts=restarts)
    status = local.run(job, Plan(commands))
    return status, time.monotonic() - start


def test_lines_are_shown_with_the_process_and_kept(tmp_path, capfd):
    body = "print('one'); print('two', file=sys.stderr); sys.stdout.write('thr\\xffee')"
    assert launch(tmp_path, body, body)[0] == 0
    lines = capfd.readouterr().out.splitlines()
    assert sorted(lines) == sorted(f"[{i}] {s}" for i in (0, 1) for s in ("one", "two", "thrÿee"))
    assert (tmp_path / "logs" / "output-1.log").read_text() == "one\ntwo\nthrÿee"
    assert launch(tmp_path, body, "")[0] == 0  # a second launch adds to the log
    assert (tmp_path / "logs" / "output-0.log").read_text().count("two") == 2


def test_lines_are_shown_while_the_process_runs(tmp_path, capfd):
    marker = tmp_path / "seen"
    body = f"print('begun')\nwhile not os.path.exists({str(marker)!r}): time.sleep(0.02)"
    shown = []

    def write(text):
        shown.append(text)
        marker.touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "stdout", type("Out", (), {"write": staticmethod(write), "flush": int})()
        )
        assert launch(tmp_path, body)[0] == 0
    assert shown == ["[0] begun\n"]


@pytest.mark.parametrize(
    "death, status, told",
    [
        ("sys.exit(3)", 3, "process 1 ended first: exit code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "process 1 ended first: killed by SIGKILL"),
        ("raise ValueError('no')", 1, "process 1 ended first: exit code 1"),
    ],
)
def test_one_that_fails_ends_all_and_is_named(death, status, told, tmp_path, capfd):
    waits = "time.sleep(60)"
    found, seconds = launch(tmp_path, waits, f"time.sleep(0.3); {death}", waits)
    assert found == status and seconds < 10
    assert told in capfd.readouterr().err


@pytest.mark.parametrize(
    "codes, runs", [([1], 1), ([2], 1), ([143], 1), ([130], 1), ([-9, 134, 0], 3), ([-9] * 9, 3)]
)
def test_a_killed_run_starts_again(codes, runs, tmp_path, capfd):
    count = tmp_path / "count"
    body = f"import pathlib; p = pathlib.Path({str(count)!r}); n = len(p.read_text())\n"
    body += f"p.write_text('x' * (n + 1)); code = {codes}[n]\n"
    body += "os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)"
    count.write_text("")
    status, _ = launch(tmp_path, body, "time.sleep(0.2)", restarts=2)
    last = codes[runs - 1]
    assert (status, len(count.read_text())) == (last if last >= 0 else 128 - last, runs)
    assert capfd.readouterr().err.count("starting again") == runs - 1


def test_one_that_will_not_end_is_killed_with_what_it_started(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(local, "PATIENCE", 0.5)
    pid = tmp_path / "pid"
    body = "import subprocess; signal.signal(15, signal.SIG_IGN); "
    body += (
        f"child = subprocess.Popen(['sleep', '60']); open({str(pid)!r}, 'w').write(str(child.pid))"
    )
    fails = (
        f"while not os.path.exists({str(pid)!r}): time.sleep(0.02)\ntime.sleep(0.2); sys.exit(4)"
    )
    found, seconds = launch(tmp_path, f"{body}\ntime.sleep(60)", fails)
    assert found == 4 and seconds < 10
    assert "killed: 0" in capfd.readouterr().err
    wait_for(lambda: not os.path.exists(f"/proc/{pid.read_text()}") or _zombie(pid.read_text()))


def _zombie(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().split(")")[1].split()[0] == "Z"


def test_the_others_may_go_on_saving_after_one_that_has_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "PATIENCE", 0.3)
    saved = tmp_path / "saved"
    slow = f"signal.signal(15, lambda *_: sys.exit(9)); time.sleep(1.5); open({str(saved)!r}, 'w')"
    assert launch(tmp_path, f"{slow}; sys.exit(143)", "sys.exit(143)")[0] == 143
    assert saved.exists()


def test_one_that_finishes_waits_for_the_others(tmp_path):
    assert launch(tmp_path, "", "time.sleep(0.5)")[0] == 0
    assert launch(tmp_path, "", "time.sleep(0.5); sys.exit(5)")[0] == 5


LAUNCHER = """
import sys
from tests.launch.test_local import launch
import pathlib
body = '''
def stop(number, frame):
    print("signal", number)
    time.sleep(0.5)
    sys.exit(128 + number)
for number in (2, 15): signal.signal(number, stop)
print("begun")
time.sleep(60)
'''
sys.exit(launch(pathlib.Path(sys.argv[1]), body, body)[0])
"""


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_passed_on_once_and_its_status_is_kept(number, status, tmp_path):
    running = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    begun = [running.stdout.readline() for _ in range(2)]
    assert sorted(begun) == ["[0] begun\n", "[1] begun\n"]
    os.killpg(running.pid, number)  # as a terminal does
    out = running.communicate(timeout=60)[0]
    assert running.returncode == status
    assert sorted(out.splitlines()) == [f"[{i}] signal {int(number)}" for i in (0, 1)]


def test_words_and_environment_reach_each_process(tools, awkward):
    tools.add("py")
    job = make(f"/w/{awkward}", processes=2, devices=2, env={"A": awkward, "XLA": 1})
    for words in local.commands(job, 99, python=str(tools.folder / "py")):
        subprocess.run(words, env=tools.env, check=True)
    first, second = tools.called("py")
    common = ["-m", "tinker.cli", *job.words, "--processes=2", "--coordinator=127.0.0.1:99"]
    assert first["argv"] == [*common, "--process_id=0"]
    assert second["argv"] == [*common, "--process_id=1"]
    given = {k: second["env"][k] for k in ("A", "XLA", "CUDA_VISIBLE_DEVICES")}
    assert given == {"A": awkward, "XLA": "1", "CUDA_VISIBLE_DEVICES": "2,3"}
    assert second["env"]["JAX_NUM_CPU_DEVICES"] == "2"


@pytest.mark.deep
def test_two_processes_train_and_a_killed_one_ends_the_run_which_then_goes_on(tmp_path, python):
    """The command as users type it, with real training."""
    job = tmp_path / "job.py"
    job.write_text(
        "from tests.train.tiny import tiny\n"
        "def get_config(): return tiny(steps=150, eval_every=0, checkpoint_every=5)\n"
    )
    workdir = tmp_path / "my run"
    code = "import sys, tinker.cli; sys.exit(tinker.cli.main(sys.argv[1:]))"
    argv = [
        "launch",
        "--on=local",
        f"--config={job}",
        f"--workdir={workdir}",
        "--config.launch.processes=2",
        "--config.launch.devices=2",
        "--config.launch.restarts=0",
    ]
    root = str(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    env = {**os.environ, "PYTHONPATH": root}
    running = subprocess.Popen(
        [sys.executable, "-c", code, *argv], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    saved = workdir / "checkpoints"
    wait_for(lambda: saved.exists() and any(p.name.isdigit() for p in saved.iterdir()), 240)
    (victim,) = processes(f"--workdir={workdir}", "--process_id=1")
    os.kill(victim, signal.SIGKILL)
    start = time.monotonic()
    err = running.communicate(timeout=60)[1].decode()
    assert running.returncode == 137 and time.monotonic() - start < 30
    assert "process 1 ended first: killed by SIGKILL" in err
    job.write_text("raise SystemExit('the job has its config')")
    again = json.loads((workdir / "launch" / "config.json").read_text())
    assert again["steps"] == 150 and again["launch"]["processes"] == 2
    argv[2] = f"--config={workdir}/launch/config.json"
    done = python(code, *argv, PYTHONPATH=root)
    assert "resuming" in done.stdout and "test/accuracy" in done.stdout
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 150 and [r["step"] for r in rows] == sorted(r["step"] for r in rows)


def processes(*words):
    """The processes whose command line has these words."""
    for path in os.listdir("/proc"):
        if path.isdigit():
            try:
                with open(f"/proc/{path}/cmdline") as file:
                    argv = file.read().split("\0")
            except OSError:
                continue
            if all(word in argv for word in words):
                yield int(path)
