"""What several devices, several processes, FSDP and checkpoints cost, as ratios within one run.

First bytes of a device under FSDP, from the compiled program; and by how much a turn of steps is
longer when a checkpoint is written meanwhile, in the background or before the next step. Then weak
scaling. Virtual devices and processes share this machine's cores, so that no time falls with their
number; what is measured is the overhead: a step of n devices (or processes) with n times the
examples, over a step of one device with as many, in turns.

    python benchmarks/scaling.py --turns=10 --width=64
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from etils import epath

from tinker import train
from tinker.train import sharding
from tinker.train.checkpoints import Checkpoints
from tinker.train.compiling import compiled
from tinker.train.locating import load_config
from tinker.train.processes import join_processes

DEVICES, PROCESSES, BATCH, STEPS = (1, 2, 4, 8), (1, 2, 4), 4, 4


def job(width, batch, **mesh):
    """A small language model on a mesh."""
    config = load_config("train/byte_lm")
    config.model.update(width=width, depth=2, length=64, scan=True)
    config.data.length = 64
    config.update(batch_size=batch, mesh={"data": 1} | mesh)
    return config


def start(config):
    """``(take, state)``: ``take(count)`` seconds per step of a job on one batch, and its state."""
    streams = train.load_streams(config, "train")
    made = compiled(config, streams)
    batch = {k: v[: config.batch_size] for k, v in streams[0].dataset.source.items()}
    batch["mask"] = np.ones(config.batch_size, bool)
    split = sharding.batch_sharding(made.mesh)
    batch = {
        k: jax.make_array_from_callback(batch[k].shape, split, batch[k].__getitem__)
        for k in made.batch
    }
    held = [made.init(jax.random.key(0), batch)]

    def take(count=STEPS):
        began = time.perf_counter()
        for _ in range(count):
            held[0], metrics = made.step(held[0], batch)
        jax.block_until_ready((held[0], metrics))
        return (time.perf_counter() - began) / count

    take(2)
    return take, lambda: held[0]


def interval(values):
    """The median and its 95 % interval, by bootstrap over the turns."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.quantile(np.median(draws, 1), [0.025, 0.975])
    return f"{np.median(values):.2f} [{low:.2f}, {high:.2f}]"


def devices(width, turns):
    """Steps of n virtual devices over those of one, of the same examples."""
    print(f"\n{BATCH} examples for each device, step over that of one device with as many:")
    for n in DEVICES:
        many = start(job(width, BATCH * n, data=n))[0]
        one = start(job(width, BATCH * n))[0]
        pairs = np.array([(many(), one()) for _ in range(turns)])
        shown = f"{interval(pairs[:, 0] / pairs[:, 1])}  ({np.median(pairs[:, 0]) * 1e3:.1f} ms)"
        print(f"  {n} devices  {shown}", flush=True)


def processes(width, turns):
    """Steps of n processes over those of one, of the same examples; a few jobs of each in turn."""
    print(f"\n{BATCH} examples for each process, step over that of one process with as many:")
    rounds = max(turns // 5, 1)
    found = {n: [] for n in PROCESSES[1:]}
    for _ in range(rounds):
        for n in found:
            many, one = (run_processes(width, count, BATCH * n, turns) for count in (n, 1))
            found[n].append(many / one)
    for n, ratios in found.items():
        listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"  {n} processes  {np.median(ratios):.2f} (rounds: {listed})")


def run_processes(width, count, batch, turns):
    """Median seconds of a step in a job of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, __file__, f"--width={width}", f"--turns={turns}", f"--batch={batch}"]
    words += [f"--processes={count}"]
    if count > 1:
        words += [f"--coordinator=127.0.0.1:{port}"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    started = [
        subprocess.Popen([*words, f"--process_id={i}"], env=env, stdout=subprocess.PIPE, text=True)
        for i in range(count)
    ]
    try:
        outputs = [p.communicate(timeout=500)[0] for p in started]
    finally:
        for p in started:
            p.kill()
    if any(p.returncode for p in started):
        raise SystemExit(f"a job of {count} processes failed; see above")
    return json.loads(outputs[0].splitlines()[-1])


def child(options):
    """One process of such a job: prints the median seconds of a step."""
    if options.processes > 1:
        join_processes(options.coordinator, options.processes, options.process_id)
    take, _ = start(job(options.width, options.batch, data=options.processes))
    print(json.dumps(float(np.median([take() for _ in range(options.turns)]))))


def memory(width):
    """Bytes of a device under FSDP, from the compiled program."""
    print("\nbytes of a device, and that times the devices over one device's:")
    plans = {n: train.plan(job(4 * width, max(DEVICES), fsdp=n))["bytes"] for n in DEVICES}
    for n, found in plans.items():
        shown = []
        for what in ("parameters", "optimizer", "temporaries"):
            share = n * found[what] / plans[1][what]
            shown.append(f"{what} {found[what] / 2**20:7.2f} MiB ({share:.3f})")
        print(f"  fsdp={n}  {'  '.join(shown)}")


def checkpoints(width, turns, steps=20):
    """By how much a turn of steps is longer with a checkpoint, per step."""
    take, state = start(job(4 * width, BATCH))
    size = sum(x.nbytes for x in jax.tree.leaves(state()) if hasattr(x, "nbytes"))
    results = {"in the background": [], "before the next step": []}
    with tempfile.TemporaryDirectory() as folder:
        saved, number = Checkpoints(epath.Path(folder)), 0
        for turn in range(turns + 1):
            plain = take(steps) * steps
            for name, kept in results.items():
                number += 1
                began = time.perf_counter()
                saved.save(state(), {"step": number})
                if name != "in the background":
                    saved.wait()
                call = time.perf_counter() - began
                seconds = call + take(steps) * steps
                saved.wait()
                if turn:  # not the first, in which checksums were compiled
                    kept.append((call, seconds - plain, plain / steps))
        saved.close()
    print(f"\na checkpoint of {size / 2**20:.0f} MiB every {steps} steps, written")
    for name, kept in results.items():
        call, longer, step = np.array(kept).T
        print(f"  {name:20}  the call returns after {np.median(call) * 1e3:.1f} ms;", end=" ")
        print(f"{np.median(longer) / steps * 1e3:+.2f} ms per step of ", end="")
        print(f"{np.median(step) * 1e3:.1f} ms, {interval(longer / steps / step)} of a step")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=10, help=f"of {STEPS} steps each")
    parser.add_argument("--width", type=int, default=64, help="of the model")
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--process_id", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.processes:
        child(options)
        return
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f}, jax {jax.__version__}, {Path(__file__).name}")
    memory(options.width)
    checkpoints(options.width, options.turns)
    devices(options.width, options.turns)
    processes(options.width, options.turns)


if __name__ == "__main__":
    main()
