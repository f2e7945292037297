"""Kills a training run again and again, and holds its end to that of an unhurt one.

``python -m tests.train.kill -n 100`` sends 100 SIGKILLs at random moments, and
``python -m tests.train.kill -n 50 --processes 4`` sends them to one of the processes of a job of
``tinker launch --on=local``, which ends the others and starts again.
"""

import argparse
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).parents[2]


def config(steps):
    from tests.train.tiny import tiny

    # Rows are logged between checkpoints, and evaluations fall beside both.
    return tiny(steps=steps, log_every=7, eval_every=30, checkpoint_every=5, keep_best="test/nll")


def spawn(workdir, steps, cache):
    """Starts the run in a process of its own."""
    command = [sys.executable, "-m", "tests.train.kill", "--child", str(workdir)]
    return subprocess.Popen(
        [*command, "--steps", str(steps)],
        cwd=ROOT,
        env={**os.environ, "TINKER_CACHE": str(cache)},
        stderr=subprocess.PIPE,
        text=True,
    )


def get_config(arg):
    """The run as a config, for ``tinker launch --config=tests/train/kill.py:STEPS``."""
    return config(int(arg))


def spawn_job(workdir, steps, cache, processes, restarts):
    """Starts the run as a job of several processes."""
    command = [sys.executable, "-m", "tinker.cli", "launch", "--on=local"]
    command += [f"--config={__file__}:{steps}", f"--workdir={workdir}"]
    command += [f"--config.launch.processes={processes}", f"--config.launch.restarts={restarts}"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "TINKER_CACHE": str(cache), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def processes_of(workdir):
    """The processes of a job that run, ``{process_id: pid}``."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:
            continue
        which = [word for word in words if word.startswith("--process_id=")]
        if which and f"--workdir={workdir}" in words:
            found[int(which[0].rpartition("=")[2])] = int(path.parent.name)
    return found


def run_killed_job(workdir, steps, cache, kills, rng, processes):
    """Like :func:`run_killed`, of a job; (process, seconds to the job's end) of each kill."""
    job, killed, said = spawn_job(workdir, steps, cache, processes, kills), [], []
    reader = threading.Thread(target=lambda: said.extend(job.stdout), daemon=True)
    reader.start()
    for i in range(kills):
        seen = progressed(workdir)
        while len(there := processes_of(workdir)) < processes and job.poll() is None:
            time.sleep(0.05)
        start = time.time()
        if i % 4 < 3:  # while it steps, saves and evaluates; else while it starts
            while progressed(workdir) <= seen and job.poll() is None and time.time() - start < 180:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.6))
        else:
            time.sleep(rng.uniform(0, 20))
        if job.poll() is not None:
            break
        victim, start = rng.randrange(processes), time.time()
        os.kill(there[victim], signal.SIGKILL)
        while set(there.values()) & set(processes_of(workdir).values()):
            time.sleep(0.02)
        killed.append((victim, time.time() - start))
        print(f"kill {len(killed)}: {progressed(workdir)} bytes of metrics", flush=True)
    job.wait()
    reader.join()
    text = "".join(said)
    assert job.returncode == 0, text[-5000:]
    named = re.findall(r"process (\d) ended first: killed by SIGKILL", text)
    assert named == [str(victim) for victim, _ in killed], (named, killed)
    return killed, said


def progressed(workdir):
    """Steps that ``metrics.jsonl`` tells of, as bytes: it grows while the run does."""
    path = workdir / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def run_killed(workdir, steps, cache, kills, rng):
    """Runs to the end through SIGKILLs; returns how many came in time, and what it said."""
    landed, said = 0, []
    for i in range(kills):
        child, start, seen = spawn(workdir, steps, cache), time.time(), progressed(workdir)
        if i % 4 < 3:  # while it steps, saves and evaluates; else while it starts
            while progressed(workdir) <= seen and child.poll() is None and time.time() - start < 60:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.6))
        else:
            time.sleep(rng.uniform(0, 4))
        landed += child.poll() is None
        child.send_signal(signal.SIGKILL)
        said.append(child.communicate()[1])
        assert child.returncode in (0, -signal.SIGKILL), said[-1]
        if child.returncode == 0:
            break
    child = spawn(workdir, steps, cache)
    said.append(child.communicate()[1])
    assert child.returncode == 0, said[-1]
    return landed, said


def outcome(workdir):
    """What a run ended with: its state bit for bit, its rows, what it says of itself, its steps."""
    from etils import epath

    from tests.train.tiny import bits, rows
    from tinker import train
    from tinker.train.checkpoints import Checkpoints

    saved = Checkpoints(epath.Path(workdir), read_only=True)
    steps = sorted(saved.manager.all_steps())
    meta = saved.read_meta(steps[-1])
    del meta["config"]["launch"]  # how often it may start again
    saved.close()
    return bits(train.restore(workdir)[1]), rows(workdir), meta, steps


def difference(one, other):
    """In words, how two outcomes differ; empty if they do not."""
    import numpy as np

    found = []
    for path, (dtype, shape, content) in one[0].items():
        if other[0].get(path) != (dtype, shape, content):
            a, b = (np.frombuffer(x[0][path][2], dtype) for x in (one, other))
            found.append(f"{path} by {np.abs(a.astype(float) - b.astype(float)).max():.2g}")
    pairs = zip(one[1], other[1], strict=False)
    found += [f"rows {a} and {b}" for a, b in pairs if a != b][:2]
    keys = one[2].keys() | other[2].keys()
    found += [f"meta's {key}" for key in keys if one[2].get(key) != other[2].get(key)]
    found += [f"checkpoints {one[3]} and {other[3]}"] if one[3] != other[3] else []
    found += [f"{len(one[1])} and {len(other[1])} rows"] if len(one[1]) != len(other[1]) else []
    return "; ".join(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=3, help="how many SIGKILLs")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    steps = options.steps or 100 + 60 * options.n
    if options.child:
        from tinker import train

        train.fit(config(steps), options.child)
        return
    seed = random.randrange(10**6) if options.seed is None else options.seed
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        start, job, several = time.time(), (steps, folder / "cache"), options.processes > 1
        first = (spawn_job if several else spawn)(
            folder / "whole", *job, *([options.processes, 0] if several else [])
        )
        first.communicate()
        print(f"{steps} steps unhurt in {time.time() - start:.0f} s; seed {seed}", flush=True)
        kills = options.n, random.Random(seed)
        if several:
            killed, said = run_killed_job(folder / "killed", *job, *kills, options.processes)
            landed, slowest = len(killed), max((seconds for _, seconds in killed), default=0)
            print(f"the others had ended after {slowest:.1f} s at most", flush=True)
        else:
            landed, said = run_killed(folder / "killed", *job, *kills)
        damaged = sum("damaged" in text for text in said)
        torn = sum("resuming" in text for text in said)
        print(f"{landed} kills landed, {torn} resumes, {damaged} met a damaged checkpoint")
        differs = difference(outcome(folder / "whole"), outcome(folder / "killed"))
        end = f"after {time.time() - start:.0f} s"
        print(f"DIFFERENT: {differs}" if differs else "bit-identical", end)
        sys.exit(bool(differs))


if __name__ == "__main__":
    main()
