"""Reporting: progress, metrics.jsonl, TensorBoard and the learning curves of a run."""

import contextlib
import io
import json
import logging
import math
import socket
import sys
import tempfile
import time

import jax
import numpy as np

from tinker.train.processes import coordinator
from tinker.train.workdir import is_remote, upload, write_whole

# Fields of a metrics.jsonl row that two equal runs do not share.
TIMING = ("seconds", "steps_per_second", "mfu", "goodput")
CURVES_EVERY = 30.0  # seconds between two drawings of the curves, at least
LOG_EVERY = 30.0  # seconds between two writings of a process's log to an object store, at least


_LOG = logging.getLogger("tinker.process")  # of this process; nowhere unless it is one of several
_LOG.propagate = False
_LOG.addHandler(logging.NullHandler())


def say(message):
    """Tells the user something in one line, once for all processes; each notes it."""
    _LOG.info(message)
    if jax.process_index() == 0:
        print(f"tinker: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def process_log(workdir):
    """Where there are several processes, each keeps ``logs/process-I.log`` in the workdir.

    It holds what the process did and when, and how it ended, with a traceback.
    """
    if jax.process_count() == 1 or workdir is None:
        yield
        return
    me, count = jax.process_index(), jax.process_count()
    path = workdir / "logs" / f"process-{me}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _WholeLog(path) if is_remote(workdir) else logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.INFO)
    devices = len(jax.local_devices())
    here = f"on {socket.gethostname()}, {devices} devices; process 0 is at {coordinator()}"
    _LOG.info("process %d of %d %s", me, count, here)
    try:
        yield
        _LOG.info("finished")
    except SystemExit as error:
        _LOG.info("ended: %s %s", type(error).__name__, error)
        raise
    except BaseException:
        _LOG.exception("failed")
        raise
    finally:
        _LOG.removeHandler(handler)
        handler.close()


class _WholeLog(logging.StreamHandler):
    """A log in an object store, which has no append: written whole now and then, and at the end."""

    def __init__(self, path):
        super().__init__(io.StringIO())
        self.path, self.written = path, time.monotonic()
        self.stream.write(path.read_text() if path.exists() else "")

    def emit(self, record):
        super().emit(record)
        if time.monotonic() - self.written > LOG_EVERY:
            self.write()

    def write(self):
        write_whole(self.path, self.stream.getvalue())
        self.written = time.monotonic()

    def close(self):
        self.write()
        super().close()


class Reporter:
    """Writes what a run reports.

    Args:
      workdir: An ``epath.Path``, or None to write nothing.
      steps: Steps of the whole run.
      step: The step it starts from: rows of ``metrics.jsonl`` past it are dropped, they will be
        written again.
      progress: Whether to show progress: a bar on a terminal, else a line per log.
      chosen: The metric to show beside the loss.
    """

    def __init__(self, workdir, steps, step=0, progress=True, chosen=None):
        self.workdir, self.steps, self.chosen = workdir, steps, chosen
        self.rows, self._drawn, self._latest = [], time.monotonic(), {}
        self._file = self._board = self._local = None
        if workdir is not None:
            lines = read_rows(workdir, step)
            self.rows = [json.loads(line) for line in lines]
            write_whole(workdir / "metrics.jsonl", "".join(line + "\n" for line in lines))
            self._open(step)
        self._bar = _bar(steps, step) if progress else None
        self._lines = progress and self._bar is None

    def _open(self, step):
        from tensorboardX import SummaryWriter

        if is_remote(self.workdir):
            self._local = tempfile.TemporaryDirectory(prefix="tinker-")
        else:
            self._file = open(self.workdir / "metrics.jsonl", "a")  # noqa: SIM115
        folder = self._local.name if self._local else str(self.workdir / "tensorboard")
        self._board = SummaryWriter(folder, purge_step=step + 1 if step else None)

    def log(self, step, values, seconds, rate=None, shares=None):
        """Adds a row of training metrics (with a rate, and shares of time), or an evaluation's."""
        row = {"step": step, **{k: _number(v) for k, v in values.items()}}
        timing = {"seconds": round(seconds, 3)}
        if rate is not None:
            timing["steps_per_second"] = float(f"{rate:.4g}")
        timing |= {name: float(f"{share:.4g}") for name, share in (shares or {}).items()}
        self.rows.append(row | timing)
        _LOG.info(json.dumps(row | timing))
        if self._file:
            self._file.write(json.dumps(row | timing) + "\n")
            self._file.flush()
        for name, value in (row | (shares or {})).items() if self._board else ():
            if isinstance(value, float) and math.isfinite(value):
                self._board.add_scalar(name if "/" in name else f"train/{name}", value, step)
        self._latest |= {k: v for k, v in row.items() if isinstance(v, float)}
        self._show(step, rate)

    def _show(self, step, rate):
        shown = [k for k in ("loss", self.chosen) if k in self._latest]
        text = "  ".join(f"{k} {self._latest[k]:.4g}" for k in shown)
        if self._bar is not None:
            speed = {} if rate is None else {"speed": f"{rate:.4g} steps/s"}
            self._bar.update(self._bar.task_ids[0], completed=step, metrics=text, **speed)
        elif self._lines:
            if rate:
                left = time.strftime("%H:%M:%S", time.gmtime((self.steps - step) / rate))
                text += f"  {rate:.4g} steps/s  {left} left"
            print(f"step {step}/{self.steps}  {text}", file=sys.stderr, flush=True)

    def flush(self):
        """Makes what was logged last: before a checkpoint that follows it."""
        if self._board:
            self._board.flush()
        if self._local:
            upload(self._local.name, self.workdir / "tensorboard")
            text = "".join(json.dumps(row) + "\n" for row in self.rows)
            write_whole(self.workdir / "metrics.jsonl", text)

    def draw(self, force=False):
        """Draws ``curves.png``, at most every half minute unless forced."""
        if self.workdir is None or not self.rows:
            return
        if force or time.monotonic() - self._drawn > CURVES_EVERY:
            write_whole(self.workdir / "curves.png", curves(self.rows, self.workdir.name))
            self._drawn = time.monotonic()

    def close(self):
        """Closes the files and takes the bar down."""
        self.flush()
        if self._bar is not None:
            self._bar.stop()
        if self._board:
            self._board.close()
        if self._file:
            self._file.close()
        if self._local:
            upload(self._local.name, self.workdir / "tensorboard")
            self._local.cleanup()


def _number(value):
    value = np.asarray(value)
    return float(value) if value.ndim == 0 else value.tolist()


def _bar(steps, step):
    """A progress bar, or None where nobody watches."""
    if not sys.stderr.isatty():
        return None
    import rich.console
    import rich.progress as p

    columns = [
        p.MofNCompleteColumn(),
        p.BarColumn(bar_width=24),
        p.TextColumn("{task.fields[metrics]}"),
        p.TextColumn("{task.fields[speed]}"),
        p.TimeRemainingColumn(),
    ]
    console = rich.console.Console(stderr=True)
    bar = p.Progress(*columns, console=console, speed_estimate_period=120)
    bar.add_task("", total=steps, completed=step, metrics="", speed="")
    bar.start()
    return bar


def productive_seconds(rows):
    """What the steps of a run have taken, of all its starts together.

    Args:
      rows: Rows of ``metrics.jsonl`` as dicts. Of steps that were lost and taken again it has the
        last alone.

    Returns:
      ``(seconds, step)``: seconds in which the device took the steps up to that one.
    """
    seconds, last = 0.0, 0
    for row in rows:
        if row.get("steps_per_second"):
            seconds += (row["step"] - last) / row["steps_per_second"]
            last = row["step"]
    return seconds, last


def read_rows(workdir, last_step=math.inf):
    """The lines of ``metrics.jsonl`` up to a step; one that a kill cut off is left out."""
    path, lines = workdir / "metrics.jsonl", []
    if path.exists():
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if json.loads(line)["step"] <= last_step:
                    lines.append(line)
    return lines


# Learning curves.


def curves(rows, title=""):
    """Draws learning curves.

    Args:
      rows: Rows of ``metrics.jsonl`` as dicts.
      title: Of the figure; metrics that were evaluated once are written beside it.

    Returns:
      The bytes of a PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(rows)
    single = {n: p for n, p in panels.items() if all(len(v) == 1 for _, v in p.values())}
    if len(single) < len(panels):
        panels = {n: p for n, p in panels.items() if n not in single}
        last = [f"{s} {n} {v[0]:.4g}" for n, p in single.items() for s, (_, v) in p.items()]
        title = "     ".join([title, *last])
    across = {1: 1, 2: 2, 4: 2}.get(len(panels), 3)
    down = max(-(-len(panels) // across), 1)
    figure = Figure(figsize=(4.6 * across, 3.1 * down), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for number, (name, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(down, across, number)
        _panel(axes, name, lines)
        axes.set_xlim(0, max(rows[-1]["step"], 1) * 1.02)
        if number > len(panels) - across:
            axes.set_xlabel("step", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    with io.BytesIO() as file:
        figure.savefig(file, format="png", metadata={"Software": None})
        return file.getvalue()


def _panels(rows):
    """``{panel: {line: (steps, values)}}``: the loss, the metrics by split, the rest."""
    trained, evaluated = {}, {}
    for row in rows:
        kind = trained if "steps_per_second" in row else evaluated
        for name, value in row.items():
            if name != "step" and name not in TIMING and isinstance(value, float):
                steps, values = kind.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(value)
    first, middle, last = {}, {}, {}
    for name, line in trained.items():
        head, _, term = name.partition("/")
        if head == "loss":
            first.setdefault("loss", {})[term or "train"] = line
        else:
            last[name] = {"train": line}
    for name, line in evaluated.items():
        split, _, metric = name.partition("/")
        middle.setdefault(metric, {})[split] = line
    both = first.keys() & middle.keys()
    first |= {name: first[name] | middle.pop(name) for name in both}
    return first | middle | last


COLOURS = ("#1f5fa8", "#d1602a", "#2b8a5a", "#8a4fa3", "#b8951f", "#5b6770", "#c23b5a", "#2aa3b8")


def _panel(axes, name, lines):
    from matplotlib.ticker import MaxNLocator

    drawn = []
    for colour, (label, (steps, values)) in zip(COLOURS * len(lines), lines.items()):
        stride = -(-len(steps) // 2000)
        last = values[-1]
        steps, values = np.asarray(steps)[::stride], np.asarray(values)[::stride]
        few = len(steps) <= 25
        noisy = len(steps) >= 60
        (line,) = axes.plot(
            steps,
            values,
            color=colour,
            linewidth=0.8 if noisy else 1.6,
            alpha=0.35 if noisy else 1.0,
            marker="o" if few else None,
            markersize=3.5,
        )
        if noisy:  # the raw curve pale, a running mean over it
            width = max(len(values) // 20, 5) | 1
            weights = np.hanning(width + 2)[1:-1]
            smooth, total = (np.convolve(v, weights, "same") for v in (values, 1 + 0 * values))
            smooth = smooth / total
            (line,) = axes.plot(steps, smooth, color=colour, linewidth=1.6)
        line.set_label(f"{label}  {last:.4g}")
        drawn.append(values[np.isfinite(values)])
    values = np.concatenate(drawn)
    if len(values) and values.min() > 0 and values.max() > 30 * values.min():
        axes.set_yscale("log")
    axes.set_title(name, fontsize=10, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, length=3, color="#999999")
    axes.legend(fontsize=8, frameon=False, loc="best", handlelength=1.2)
