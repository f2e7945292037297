"""The figure of a sweep: its metric against what was swept."""

import io

import numpy as np

from tinker.train.reporting import COLOURS


def is_seed(key):
    """Whether a swept key only repeats a point."""
    return key.rpartition(".")[2] in ("seed", "split_seed")


def draw_sweep(rows, metric, title=""):
    """Draws a sweep: a line for one key, a heat map for a grid of two, else dots against each.

    Every run is a dot, seeds are averaged, an axis whose values span decades is logarithmic.

    Args:
      rows: As :func:`tinker.train.run_sweep` returns them.
      metric: The metric to draw.
      title: Of the figure.

    Returns:
      The bytes of a PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    keys = dict.fromkeys(k for row in rows for k in row["point"])
    keys = [k for k in keys if not is_seed(k) and len(_distinct(rows, k)) > 1]
    grid = _grid(rows, keys, metric) if len(keys) == 2 else None
    panels = 1 if grid or not keys else len(keys)
    across = min(panels, 3)
    down = -(-panels // across)
    figure = Figure(figsize=(max(4.6 * across, 5.2), 3.6 * down), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    if grid:
        _heat_map(figure, figure.add_subplot(), keys, *grid, metric)
    elif not keys:
        _sorted_dots(figure.add_subplot(), rows, metric)
    for number, key in enumerate(() if grid else keys, 1):
        axes = figure.add_subplot(down, across, number)
        _against(axes, rows, key, metric, joined=len(keys) == 1)
    diverged = sum(row["status"] == "diverged" for row in rows)
    waiting = sum(row["status"] == "waiting" for row in rows)
    told = [title, f"{len(rows)} points"]
    told += [f"{n} {what}" for n, what in ((diverged, "diverged"), (waiting, "waiting")) if n]
    figure.suptitle("   ".join(filter(None, told)), fontsize=11, x=0.01, ha="left")
    with io.BytesIO() as file:
        figure.savefig(file, format="png", metadata={"Software": None})
        return file.getvalue()


def _distinct(rows, key):
    """The values of a key, numbers in order, others as they come; None where a point has none."""
    found = {repr(row["point"].get(key)): row["point"].get(key) for row in rows}
    values = list(found.values())
    return sorted(values) if all(map(_is_number, values)) else values


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value(row, metric):
    value = row["results"].get(metric, np.nan)
    return float(value) if np.ndim(value) == 0 else np.nan


def _style(axes, metric):
    axes.set_ylabel(metric, fontsize=9)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, length=3, color="#999999")


def _spans_decades(values):
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    return len(values) > 1 and values.min() > 0 and values.max() >= 10 * values.min()


def _against(axes, rows, key, metric, joined):
    """A metric against one key."""
    values, at = _distinct(rows, key), {}
    numbers = all(map(_is_number, values))
    for place, value in enumerate(values):
        at[repr(value)] = value if numbers else place
    x = np.array([at[repr(row["point"].get(key))] for row in rows], float)
    y = np.array([_value(row, metric) for row in rows])
    axes.plot(x, y, "o", color=COLOURS[0], markersize=4.5, alpha=0.55 if joined else 0.8, mew=0)
    if joined:
        middle = [_mean(y[x == place]) for place in sorted(set(x))]
        line, size = ("o-", 6) if numbers else ("_", 22)
        axes.plot(sorted(set(x)), middle, line, color=COLOURS[0], linewidth=1.6, markersize=size)
    lost = np.array([row["status"] == "diverged" for row in rows])
    if lost.any():  # at the foot of the panel, where they have no height
        foot, where = np.full(lost.sum(), 0.03), axes.get_xaxis_transform()
        crosses = axes.plot(x[lost], foot, "x", color=COLOURS[6], transform=where)
        axes.legend(crosses, ["diverged"], fontsize=8, frameon=False, loc="best")
    if numbers and _spans_decades(values):
        axes.set_xscale("log")
    if not numbers:
        texts = [_short(v) for v in values]
        slant = {"rotation": 20, "ha": "right"} if sum(map(len, texts)) > 36 else {}
        axes.set_xticks(range(len(values)), texts, fontsize=8, **slant)
        axes.set_xlim(-0.5, len(values) - 0.5)
    if len(y[np.isfinite(y)]) and np.nanmin(y) > 0 and np.nanmax(y) > 30 * np.nanmin(y):
        axes.set_yscale("log")
    axes.set_xlabel(key, fontsize=9)
    _style(axes, metric)


def _mean(values):
    values = values[np.isfinite(values)]
    return values.mean() if len(values) else np.nan


def _short(value):
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = text.rpartition(":")[2] if isinstance(value, str) else text  # a function's own name
    return text if len(text) <= 24 else "…" + text[-23:]


def _sorted_dots(axes, rows, metric):
    """The runs of a sweep over seeds alone, by their metric."""
    y = np.sort([_value(row, metric) for row in rows])
    axes.plot(np.arange(1, len(y) + 1), y, "o", color=COLOURS[0], markersize=5)
    axes.axhline(_mean(y), color=COLOURS[0], linewidth=0.8, linestyle="--")
    axes.set_xlabel("runs, sorted", fontsize=9)
    _style(axes, metric)


def _grid(rows, keys, metric):
    """(values of the first key, of the second, means, how many diverged); None if not a grid."""
    first, second = (_distinct(rows, key) for key in keys)
    cells = {}
    for row in rows:
        cells.setdefault(tuple(repr(row["point"].get(k)) for k in keys), []).append(row)
    if len(cells) < len(first) * len(second):
        return None
    means, lost = np.full((len(first), len(second)), np.nan), np.zeros((len(first), len(second)))
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            found = cells[repr(a), repr(b)]
            means[i, j] = _mean(np.array([_value(row, metric) for row in found]))
            lost[i, j] = sum(row["status"] == "diverged" for row in found)
    return first, second, means, lost


def _heat_map(figure, axes, keys, first, second, means, lost, metric):
    masked = np.ma.masked_invalid(means)
    drawn = axes.imshow(masked, aspect="auto", origin="lower", cmap="viridis")
    axes.set_facecolor("#e6e6e6")
    axes.set_xticks(range(len(second)), [_short(v) for v in second], fontsize=8)
    axes.set_yticks(range(len(first)), [_short(v) for v in first], fontsize=8)
    axes.set_xlabel(keys[1], fontsize=9)
    axes.set_ylabel(keys[0], fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if masked.count():
        figure.colorbar(drawn, ax=axes, label=metric).ax.tick_params(labelsize=8)
    if max(means.shape) > 12:
        return
    for (i, j), mean in np.ndenumerate(means):
        text = f"{mean:.4g}" if np.isfinite(mean) else ""
        text += f"\n{int(lost[i, j])} diverged" if lost[i, j] else ""
        dark = np.isfinite(mean) and drawn.norm(mean) < 0.6
        colour = "white" if dark else "#222222"
        axes.text(j, i, text.strip(), ha="center", va="center", fontsize=8, color=colour)
