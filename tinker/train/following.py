"""Following: a job of its own evaluates the checkpoints of a run as they come."""

import collections
import contextlib
import json
import signal
import time

import jax

from tinker.numerics import UserError
from tinker.train import evaluation, sharding
from tinker.train.building import build, build_metrics, load_streams
from tinker.train.checkpoints import FOLDER, Checkpoints, Corrupt
from tinker.train.compiling import abstract_state, use_compilation_cache
from tinker.train.interrupts import Interrupted, Signals
from tinker.train.reporting import Reporter, read_rows, say
from tinker.train.workdir import claim_config, folder, read_config, sole_user

TRIES = 3  # at a checkpoint that is there but cannot be read


def follow(workdir, output=None, *, splits=None, timeout=None, poll=10.0, mesh=None, progress=True):
    """Evaluates every checkpoint of a run once, up to its last step; the run may be going on.

    Nothing of the run's own is written or moved. A checkpoint that the run deletes before it is
    read is left out. The same call goes on where it was stopped.

    Args:
      workdir: Of the run, which may not have begun; a path, which may be ``gs://``.
      output: Where ``metrics.jsonl``, TensorBoard and curves go; ``WORKDIR/eval`` by default.
      splits: Names of splits, by default ``config.eval_splits``.
      timeout: Seconds after which to give up when no new checkpoint came; None never does.
      poll: Seconds between two looks.
      mesh: Where the state goes, by default the first device.
      progress: Whether to show progress.

    Returns:
      The rows of ``metrics.jsonl`` as dicts.

    Raises:
      UserError: No new checkpoint came in time, the last one cannot be read, or the output is of
        another run.
      Interrupted: A SIGTERM or SIGINT came. Exits with 143 or 130.
    """
    use_compilation_cache()
    workdir = folder(workdir)
    output = workdir / "eval" if output is None else folder(output)
    if output == workdir:
        raise UserError(f"--output={output} is the run's own folder; take another")
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        fresh, last, told = time.monotonic(), 0, False

        def pause(what):
            """Sleeps until the next look, unless it is time to stop."""
            until = time.monotonic() + poll
            while time.monotonic() < until and not signals.number:
                time.sleep(min(poll, 0.1))
            stop_if_told()
            if timeout is not None and time.monotonic() - fresh > timeout:
                raise UserError(f"{what} in {workdir} for {timeout:g} s; the same call goes on")

        def stop_if_told():
            if signals.number:
                name = signal.Signals(signals.number).name
                say(f"{name}: evaluated up to step {last}; the same command goes on from there")
                raise Interrupted(signals.number, last)

        while not (workdir / "config.json").exists():
            if not told:
                say(f"waiting for a run in {workdir}")
                told = True
            pause("no run began")
        config = read_config(workdir)
        splits = tuple(config.eval_splits if splits is None else splits)
        mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1]) if mesh is None else mesh
        names, evaluate = _evaluator(workdir, config, splits, mesh)
        claim_config(output, config)
        stack.enter_context(sole_user(output))
        done = set()
        for row in map(json.loads, read_rows(output)):
            done |= {(row["step"], split) for split in splits if names[split] & row.keys()}
        last = max((step for step, _ in done), default=0)
        chosen = next(iter(sorted(names[splits[0]])))
        writes = jax.process_index() == 0
        reporter = Reporter(
            output if writes else None, config.steps, last, progress and writes, chosen
        )
        stack.callback(reporter.close)
        failed = collections.Counter()
        while not done.issuperset((config.steps, split) for split in splits):
            stop_if_told()
            there = [s for s in _steps(workdir) if not done.issuperset((s, p) for p in splits)]
            step = next((s for s in there if failed[s] < TRIES), None)
            if step is None:
                if config.steps in there:
                    raise UserError(f"the last checkpoint of {workdir}, {config.steps}, is damaged")
                reporter.draw()
                pause(f"no new checkpoint after step {last} of {config.steps}")
                continue
            start, missing = time.perf_counter(), [p for p in splits if (step, p) not in done]
            try:
                results = evaluate(step, missing)
            except Corrupt as error:
                failed[step] += 1
                if step not in _steps(workdir):
                    say(f"checkpoint {step} was deleted before it was read; it is left out")
                elif failed[step] == TRIES:
                    say(f"checkpoint {step} is damaged ({error}); it is left out")
                else:  # perhaps a file system that shows it late
                    pause(f"no whole checkpoint after step {last} of {config.steps}")
                continue
            reporter.log(step, results, time.perf_counter() - start)
            reporter.flush()
            done |= {(step, split) for split in missing}
            fresh, last = time.monotonic(), max(last, step)
        reporter.draw(force=True)
        return reporter.rows


def _steps(workdir):
    """The steps of the whole checkpoints that are there now, in order."""
    if not (workdir / FOLDER).exists():
        return []
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as saved:
        return sorted(saved.manager.all_steps())


def _evaluator(workdir, config, splits, mesh):
    """(the names of each split's results, ``evaluate(step, splits) -> results``)."""
    metrics, names, batches = build_metrics(config), {}, {}
    for split in splits:
        chosen = [n for n, m in metrics.items() if m.splits is None or split in m.splits]
        if not chosen:
            raise UserError(f"config.metrics has none for split {split!r}")
        names[split] = {f"{split}/{name}" for name in chosen}
        stream = load_streams(config, split, training=False)[0]
        batches[split] = stream, evaluation.Batches(stream, mesh)
    made = {}

    def evaluate(step, splits):
        with contextlib.closing(Checkpoints(workdir, read_only=True)) as saved:
            meta = saved.read_meta(step)
            if not made:
                shapes = meta["batch"].items()
                batch = {n: jax.ShapeDtypeStruct(shape, dtype) for n, (shape, dtype) in shapes}
                program = build(config, batch, mesh)
                made["abstract"] = abstract_state(program, batch)
                made["shardings"] = sharding.tree_shardings(
                    made["abstract"], mesh, config.sharding_rules
                )
                made["measure"] = evaluation.make_measure(program, metrics, mesh)
            state = saved.read(step, meta, made["abstract"], made["shardings"])
        results = {}
        for split in splits:
            results |= evaluation.evaluate_split(
                made["measure"], metrics, state, split, *batches[split]
            )
        return results

    return names, evaluate
