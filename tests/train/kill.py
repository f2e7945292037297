"""Kills a training run again and again, and holds its end to that of an unhurt one.

``python -m tests.train.kill -n 100`` sends 100 SIGKILLs at random moments.
"""

import argparse
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
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
    saved.close()
    return bits(train.restore(workdir)[1]), rows(workdir), meta, steps


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=3, help="how many SIGKILLs")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--steps", type=int, default=None)
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
        start = time.time()
        child = spawn(folder / "whole", steps, folder / "cache")
        child.communicate()
        print(f"{steps} steps unhurt in {time.time() - start:.0f} s; seed {seed}", flush=True)
        landed, said = run_killed(
            folder / "killed", steps, folder / "cache", options.n, random.Random(seed)
        )
        damaged = sum("damaged" in text for text in said)
        torn = sum("resuming" in text for text in said)
        print(f"{landed} kills landed, {torn} resumes, {damaged} met a damaged checkpoint")
        same = outcome(folder / "whole") == outcome(folder / "killed")
        print("bit-identical" if same else "DIFFERENT", f"after {time.time() - start:.0f} s")
        sys.exit(not same)


if __name__ == "__main__":
    main()
