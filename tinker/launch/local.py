"""This machine: several processes, of which one that fails ends all, and a killed one restarts."""

import os
import queue
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

from tinker.launch.jobs import Plan, exports
from tinker.train.workdir import folder, is_remote

# When the first has failed, the others are asked to end, and killed after so many seconds; more of
# them where the first had saved, because the others do so too.
PATIENCE, PATIENCE_TO_SAVE = 5.0, 120.0


def plan(job):
    """The command of each process."""
    return Plan(commands(job, _free_port(), os.environ.get("CUDA_VISIBLE_DEVICES")))


def commands(job, port, visible=None, python=sys.executable):
    """The command of each process.

    Args:
      job: The job.
      port: Where process 0 listens for the others.
      visible: The GPUs to share out, as in CUDA_VISIBLE_DEVICES; None for all.
      python: The interpreter.
    """
    count, devices = job.settings["nodes"] * job.settings["processes"], job.settings["devices"]
    made = []
    for i in range(count):
        words = [python, "-m", "tinker.cli", *job.words, f"--processes={count}"]
        if count > 1:
            words += [f"--coordinator=127.0.0.1:{port}", f"--process_id={i}"]
        before = exports(job.settings)
        if devices:
            own = range(devices * i, devices * (i + 1))
            gpus = visible.split(",")[own.start : own.stop] if visible else map(str, own)
            before.insert(0, f"export CUDA_VISIBLE_DEVICES={','.join(gpus)}")
            before.insert(0, f"export JAX_NUM_CPU_DEVICES={devices}")
        if before:
            words = ["bash", "-c", " && ".join([*before, f"exec {shlex.join(words)}"])]
        made.append(words)
    return made


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run(job, plan):
    """Runs the processes; returns the exit status of the first that failed, or 0.

    What they print is shown line by line after ``[i] ``, and added to
    ``WORKDIR/logs/output-I.log``. SIGTERM and SIGINT are passed on to them. When one was killed,
    all of them start again, ``restarts`` times.
    """
    restarts = job.settings["restarts"]
    for n in range(restarts + 1):
        status, asked = _run_once(job, plan)
        # 143, 130: it was asked to stop, and has saved. Larger ones: a process was killed.
        if status <= 130 or status == 143 or asked:
            break
        if n < restarts:
            _say(f"exit code {status}: starting again ({n + 1} of {restarts})")
    return status


def _run_once(job, plan):
    """(the exit status, whether a signal asked for the end)."""
    logs = None if is_remote(job.workdir) else folder(job.workdir) / "logs"
    running, ended, pumps, asked = {}, queue.SimpleQueue(), [], []

    def pass_on(number, frame):
        asked.append(number)
        for process in running.values():
            process.send_signal(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {n: signal.signal(n, pass_on) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        for i, words in enumerate(plan.commands):
            # In a session of its own, or Ctrl-C would reach it twice.
            running[i] = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            pumps.append(_thread(_pump, i, running[i].stdout, logs and logs / f"output-{i}.log"))
            _thread(lambda i, process: ended.put((i, process.wait())), i, running[i])
        return _outcome(running, ended), bool(asked)
    finally:
        for process in running.values():
            _kill(process)
        for pump in pumps:  # a grandchild may hold the pipe
            pump.join(2)
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(running, ended):
    """Waits for the processes; returns the exit status of the first that failed, or 0."""
    running, status, deadline = dict(running), 0, None
    while running:
        try:
            i, code = ended.get(timeout=deadline and max(deadline - time.monotonic(), 0))
        except queue.Empty:
            names = ", ".join(map(str, running))
            _say(f"processes that did not end are killed: {names}")
            for process in running.values():
                _kill(process)
            deadline = None
            continue
        del running[i]
        if code and not status:
            status = code if code > 0 else 128 - code
            saved = status in (128 + signal.SIGTERM, 128 + signal.SIGINT) and code > 0
            how = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
            _say(f"process {i} ended first: {how}" + ("; ending the others" if running else ""))
            deadline = time.monotonic() + (PATIENCE_TO_SAVE if saved else PATIENCE)
            for process in running.values() if not saved else ():
                process.send_signal(signal.SIGTERM)
    return status


def _thread(function, *args):
    made = threading.Thread(target=function, args=args, daemon=True)
    made.start()
    return made


def _pump(i, pipe, log):
    """Shows the lines of a process, and keeps them."""
    with open(log or os.devnull, "ab", buffering=0) as file:
        for line in pipe:
            file.write(line)
            text = line.decode(errors="replace").rstrip("\n")
            sys.stdout.write(f"[{i}] {text}\n")  # in one piece: others write too
            sys.stdout.flush()


def _kill(process):
    """Ends a process and what it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _say(message):
    print(f"tinker: {message}", file=sys.stderr, flush=True)
