"""The loop: a config becomes a trained state, however often it is killed on the way."""

import collections
import contextlib
import functools
import math
import signal
import time

import jax
import numpy as np

from tinker.numerics import UserError, nearest
from tinker.train import evaluation, feeding
from tinker.train.building import load_streams
from tinker.train.checkpoints import Checkpoints, NotFinite
from tinker.train.compiling import compiled, use_compilation_cache
from tinker.train.flops import model_flops, peak_flops
from tinker.train.interrupts import Interrupted, Signals
from tinker.train.reporting import Reporter, process_log, productive_seconds, say
from tinker.train.restoring import load_pretrained
from tinker.train.workdir import (
    claim_config,
    environment,
    folder,
    local_folder,
    plain,
    record_start,
    sole_user,
)

# The host runs ahead of the device by 2 to 16 dispatches, by about these seconds at most, and then
# reads the metrics of all but 2. On a CPU, waking for every step would take time from the steps;
# and what is under way has to end before a signal is answered.
AHEAD_SECONDS = 0.25
DISPATCH_SECONDS = 0.5  # about how long one dispatch of several steps may last


def fit(config, workdir=None, *, progress=True, key=None):
    """Trains what a config describes, or goes on where a run of it in the workdir stopped.

    Args:
      config: A config, see :func:`tinker.train.default_config`.
      workdir: Where checkpoints, metrics and curves go; a path, which may be ``gs://``. None writes
        nothing.
      progress: Whether to show progress.
      key: The random key of initialisation and training, by default of ``config.seed``, of which
        the order of the data is drawn in any case.

    Returns:
      ``(state, results)``: the trained :class:`tinker.train.State`, and the metrics of the final
      evaluation, ``{"test/accuracy": 0.98, …}``.

    Raises:
      UserError: The config cannot work, the workdir belongs to another, or a metric is not finite.
      Interrupted: A SIGTERM or SIGINT came; the state is saved. Exits with 143 or 130.
    """
    state, results, _ = run(config, workdir, progress=progress, key=key)
    return state, results


def run(config, workdir=None, *, progress=True, key=None):
    """Like :func:`fit`; returns the rows of ``metrics.jsonl`` as dicts besides."""
    if config.get("sweep"):
        raise UserError("config.sweep is of several runs: tinker.train.run_sweep takes them")
    use_compilation_cache()
    workdir = None if workdir is None else folder(workdir)
    streams = load_streams(config, "train")
    made = compiled(config, streams)
    _check_names(config, made.metrics, workdir)
    with contextlib.ExitStack() as stack:
        saved = None
        if workdir is not None:
            claim_config(workdir, config)
            stack.enter_context(sole_user(workdir))
            stack.enter_context(process_log(workdir))
            saved = Checkpoints(workdir, config.keep)
            stack.push(functools.partial(_close, saved))
        feed = feeding.open_feed(streams, made.mesh, config.seed)
        stack.callback(feed.close)
        loop = Loop(config, workdir, made, feed, saved)
        if made.coverage and progress:
            say(made.coverage)
        if not loop.resume():
            loop.start(jax.random.key(config.seed) if key is None else key)
        chosen = config.keep_best or next(iter(_result_names(config, made.metrics)), None)
        writes = jax.process_index() == 0
        reporter = Reporter(
            workdir if writes else None, config.steps, loop.step, progress and writes, chosen
        )
        stack.callback(reporter.close)
        if workdir is not None and loop.step < config.steps:
            loop.first_start = record_start(workdir, loop.step)
        loop.train(reporter, stack.enter_context(Signals()))
        reporter.draw(force=True)
        return loop.state, loop.results, reporter.rows


def _close(saved, kind, error, trace):
    """Closes the checkpoints, unless that would wait for processes that may be no more."""
    if kind is None or jax.process_count() == 1 or issubclass(kind, UserError | SystemExit):
        saved.close()


class Loop:
    """A run in progress."""

    def __init__(self, config, workdir, made, feed, saved):
        self.config, self.workdir, self.made, self.feed = config, workdir, made, feed
        self.saved = saved
        self.state, self.step, self.results, self.best = None, 0, {}, None
        self.window = []  # metrics [names] of the steps since the last log
        self.pending = collections.deque()  # (end step, count, metrics on the device)
        self.splits = {}
        self.capacity, self.patient = _steps_per_dispatch(config, feed, made.convolves)
        self.seconds_per_step, self.depth = math.inf, 2
        self.profile = _profile_steps(config.profile)
        self.told = False  # that the device waits
        self.place = feeding.place_in_data(feed.streams, 0) if saved else {}
        self.first_start = None  # of all runs in the workdir
        self.flops, self.peak = None, peak_flops(config, made.mesh.devices.flat[0])

    # Where it starts.

    def start(self, key):
        """Initialises the state."""
        pretrained = load_pretrained(self.config)
        self.state = self.made.init(key, self.feed.first(), pretrained)
        self.feed.seek(0)

    def resume(self):
        """Goes on from the newest good checkpoint; whether there is one."""
        if self.saved is None:
            return False
        made = self.made
        found = self.saved.newest(
            lambda step, meta: self.saved.read(step, meta, made.abstract, made.shardings)
        )
        if found is None:
            return False
        meta, self.state = found
        self.step, self.best = meta["step"], meta["best"]
        self.results = {
            k: np.asarray(v) if isinstance(v, list) else v for k, v in meta["results"].items()
        }
        self.window = [np.array(row, np.float32) for row in meta["window"]]
        for name, there in meta["data"].items():
            if there["fingerprint"] != self.place[name]["fingerprint"]:
                raise UserError(
                    f"{self.workdir}: the data of {name!r} is not what the run was started on "
                    f"(fingerprint {there['fingerprint']} then, "
                    f"{self.place[name]['fingerprint']} now); take another workdir"
                )
        rules = "sharding_rules"
        here = environment(made.mesh) | {rules: plain(self.config)[rules]}
        there = meta["environment"] | {rules: meta["config"].get(rules)}
        changed = [k for k in here if here[k] != there.get(k)]
        how = "bit for bit"
        if changed:
            what = "; ".join(f"{k} was {there.get(k)}, is {here[k]}" for k in changed)
            how = f"exact in state and data order, not in the last bits: {what}"
        if self.step < self.config.steps:
            say(f"resuming {self.workdir} at step {self.step} ({how})")
        self.feed.seek(self.step)
        return True

    # Its steps.

    def train(self, reporter, signals):
        """Takes the steps that are left, with what is due on the way."""
        config, self.reporter = self.config, reporter
        self.began = self.clock = time.perf_counter()
        self.logged = self.step - len(self.window)
        self.productive, self.counted = productive_seconds(reporter.rows)
        self.drained = None
        if self.peak and self.first_start:
            self.flops = model_flops(config, self.made)
            if self.flops.unknown_loops:
                say("mfu is too low: the program has loops of unknown length, counted as one turn")
        if config.steps == 0:  # what was initialised is evaluated and kept
            self.drained = self.began
            self.due()
        with contextlib.ExitStack() as stack:
            while self.step < config.steps:
                if self.profile and self.step == self.profile[0]:
                    self.drain()
                    local = stack.enter_context(local_folder(self.workdir / "profile"))
                    stack.enter_context(jax.profiler.trace(local))
                stop = self.next_stop()
                self.dispatch(stop)
                if len(self.pending) > self.depth:
                    self.drain(2)
                if self.profile and self.step >= self.profile[1]:
                    self.drain()
                    stack.close()
                    self.profile = None
                if self.step == stop:
                    self.due()
                number = signals.after_step()
                if number and self.step < config.steps:
                    self.interrupted(number)
            self.drain()
            if self.saved:
                self.saved.wait()

    def next_stop(self):
        """The next step at which something else than a step is due: of the step number alone."""
        config = self.config
        stops = [config.steps, *(self.profile or ())]
        for every in (config.log_every, config.eval_every, config.checkpoint_every):
            if every:
                stops.append((self.step // every + 1) * every)
        return min(s for s in stops if s > self.step)

    def dispatch(self, stop):
        """Gives the device its next steps, one or several."""
        made, feed, count = self.made, self.feed, 1
        if not feed.resident:
            batch = feed.next(lambda: not self.pending or self.pending[-1][2].is_ready())
            self.state, metrics = made.step(self.state, batch)
        elif self.capacity == 1:
            index = feed.rows(self.step)
            self.state, metrics = made.step_rows(self.state, feed.arrays, index)
        else:
            count = min(self.capacity, stop - self.step)
            if self.patient:  # so that a signal is soon heard; the numbers are the same
                count = min(count, max(1, int(DISPATCH_SECONDS / self.seconds_per_step)))
            index = feed.rows(self.step, count, self.capacity)
            self.state, metrics = made.steps_rows(self.state, feed.arrays, index, count)
        self.step += count
        metrics.copy_to_host_async()
        self.pending.append((self.step, count, metrics))

    def drain(self, leave=0):
        """Reads the metrics of all dispatches but the last ``leave``, and logs them."""
        steps, dispatches = 0, max(len(self.pending) - leave, 0)
        while len(self.pending) > leave:
            end, count, metrics = self.pending.popleft()
            rows = np.asarray(metrics).reshape(-1, len(self.made.names))[:count]
            if self.drained is None:  # the first was compiled just now
                self.drained = self.clock = time.perf_counter()
                self.logged, steps = end, -count
            steps += count
            self.window.extend(rows)
            if not np.isfinite(rows).all():
                self.not_finite(rows, end - count)
            every = self.config.log_every
            if end == self.config.steps or (every and end % every == 0):
                self.log(end, time.perf_counter())
        if steps > 0:
            now = time.perf_counter()
            self.seconds_per_step = max((now - self.drained) / steps, 1e-9)
            per_dispatch = self.seconds_per_step * steps / dispatches
            most = 16 if self.feed.resident else 4  # batches that are not held take room
            self.depth = min(max(int(AHEAD_SECONDS / per_dispatch), 2), most)
            self.drained = now

    def log(self, step, now):
        """Reports the means over the steps since the last log."""
        means = np.mean(np.stack(self.window).astype(np.float64), 0)
        seconds = now - self.clock
        rate = (step - self.logged) / seconds if step > self.logged and seconds > 0 else 0.0
        values = dict(zip(self.made.names, means))
        self.reporter.log(step, values, now - self.began, rate, self.shares(step, rate))
        self.window, self.clock, self.logged = [], now, step
        share = self.feed.idle_seconds / max(seconds, 0.5)
        if share > 0.2 and not self.told:
            say(f"the device waits for data {min(share, 1):.0%} of the time (step {step})")
            self.told = True
        self.feed.idle_seconds = 0.0

    def shares(self, step, rate):
        """MFU, where a peak is known, and goodput of a run in a workdir; see docs/scale.md."""
        if not rate or not self.first_start:
            return {}
        self.productive += (step - self.counted) / rate
        self.counted = step
        elapsed = max(time.time() - self.first_start, self.productive)
        shares = {"goodput": self.productive / elapsed}
        if self.flops is not None:
            shares["mfu"] = self.flops.total * rate / (self.peak * self.made.mesh.size)
        return shares

    def due(self):
        """Evaluates and saves, where the step asks for it."""
        config, step, improved = self.config, self.step, False
        last = step == config.steps
        evaluates = last or (config.eval_every and step % config.eval_every == 0)
        saves = last or (config.checkpoint_every and step % config.checkpoint_every == 0)
        if not evaluates and not saves:
            return
        self.drain()
        paused = time.perf_counter()
        if evaluates:
            improved = self.evaluate()
        if self.saved and (saves or improved):
            self.save()
        pause = time.perf_counter() - paused
        self.clock += pause
        self.drained += pause

    def evaluate(self):
        """Evaluates; whether ``keep_best`` calls this state the best so far."""
        config, made, start = self.config, self.made, time.perf_counter()
        results = {}
        for split in config.eval_splits:
            if split not in self.splits:
                stream = load_streams(config, split, training=False)[0]
                self.splits[split] = stream, evaluation.Batches(stream, made.mesh)
            results |= evaluation.evaluate_split(
                made.measure, made.metrics, self.state, split, *self.splits[split]
            )
        self.results = results
        self.reporter.log(self.step, results, time.perf_counter() - start)
        self.reporter.draw()
        if not config.keep_best:
            return False
        name, sign = best_of(config.keep_best)
        value = sign * float(results[name])
        if math.isnan(value) or (self.best and value <= self.best["value"] * sign):
            return False
        self.best = {"step": self.step, "value": float(results[name])}
        return True

    def save(self):
        """Starts to write a checkpoint."""
        self.reporter.flush()
        for stream in self.place.values():
            stream["state"] = {"batch": self.step}
        shapes = {k: [list(x.shape), x.dtype.name] for k, x in self.made.batch.items()}
        meta = {
            "step": self.step,
            "config": plain(self.config),
            "data": self.place,
            "batch": shapes,
            "environment": environment(self.made.mesh),
            "results": {k: np.asarray(v).tolist() for k, v in self.results.items()},
            "window": [row.tolist() for row in self.window],
            "best": self.best,
        }
        self.saved.save(self.state, meta)

    # How it ends early.

    def interrupted(self, number):
        """Saves, says so, and exits."""
        self.drain()
        name, kept = signal.Signals(number).name, "nothing is kept without a workdir"
        if self.saved:
            self.save()
            self.saved.wait()
            kept = f"saved step {self.step} in {self.workdir}; the same command goes on from there"
        say(f"{name}: {kept}")
        raise Interrupted(number, self.step)

    def not_finite(self, rows, before):
        """Stops at the first step whose metrics are not finite."""
        row, column = np.argwhere(~np.isfinite(rows))[0]
        where = self.saved.where() if self.saved else "there is no checkpoint without a workdir"
        raise NotFinite(self.made.names[column], rows[row, column], before + row + 1, where)


def _steps_per_dispatch(config, feed, convolves):
    """(steps per dispatch, whether a dispatch may be cut short to stay brief)."""
    given = config.steps_per_dispatch
    if given is not None and given < 1:
        raise UserError(f"config.steps_per_dispatch={given} must be at least 1, or None")
    if not feed.resident:
        return 1, False
    if given is not None:
        return int(given), False
    # XLA's CPU convolutions are many times slower inside a loop than outside of one.
    if convolves and jax.default_backend() == "cpu":
        return 1, False
    return min(config.log_every or 100, 100), True


def _profile_steps(profile):
    """``"10:15"`` as (10, 15): the steps from 10 up to 15."""
    if profile is None:
        return None
    first, _, last = str(profile).partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise UserError(f"config.profile={profile!r} is not of the form 'FIRST:LAST', e.g. '10:15'")
    return int(first), int(last)


def _result_names(config, metrics):
    return [
        f"{split}/{name}"
        for split in config.eval_splits
        for name, metric in metrics.items()
        if metric.splits is None or split in metric.splits
    ]


def _check_names(config, metrics, workdir):
    names = _result_names(config, metrics)
    if config.keep_best and best_of(config.keep_best)[0] not in names:
        name = best_of(config.keep_best)[0]
        raise UserError(
            f"config.keep_best={name!r} is not evaluated; there are {', '.join(names)}"
            f"{nearest(name, names)}"
        )
    if config.steps < 0:
        raise UserError(f"config.steps={config.steps} must be at least 0")
    profile = _profile_steps(config.profile)
    if profile and profile[1] > config.steps:
        raise UserError(f"config.profile={config.profile!r} is past the last step, {config.steps}")
    if profile and workdir is None:
        raise UserError("config.profile needs a workdir to write the trace to")


LOWER_IS_BETTER = (
    "loss",
    "nll",
    "error",
    "mse",
    "mae",
    "rmse",
    "perplexity",
    "bits",
    "brier",
    "ece",
)


def best_of(keep_best):
    """(metric, 1 or -1): ``"min:validation/x"``, ``"max:…"``, or told from the metric's name."""
    how, colon, name = keep_best.partition(":")
    if colon and how in ("min", "max"):
        return name, 1 if how == "max" else -1
    words = keep_best.rpartition("/")[2].split("_")
    return keep_best, -1 if set(words) & set(LOWER_IS_BETTER) else 1
