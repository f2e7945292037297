"""Sweeps: their points, the runs of them, and what is gathered."""

import csv
import json
import signal

import matplotlib.figure
import numpy as np
import pytest

from tests.train.tiny import rows as logged
from tests.train.tiny import tiny
from tinker import train
from tinker.numerics import UserError
from tinker.train import sweeps
from tinker.train.compiling import _COMPILED
from tinker.train.reporting import Reporter
from tinker.train.specs import Config
from tinker.train.sweep_figure import draw_sweep
from tinker.train.sweeps import best_point, point_name

RATE = "optimizer.learning_rate"


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Learning curves take longer to draw than these runs take."""
    monkeypatch.setattr("tinker.train.reporting.curves", lambda *_: b"")


def test_product_zip_and_points_given():
    sweep = {"seed": [0, 1], "optimizer.b1": np.array([0.8, 0.9])}
    product = [
        {"optimizer.b1": 0.8, "seed": 0},
        {"optimizer.b1": 0.8, "seed": 1},
        {"optimizer.b1": 0.9, "seed": 0},
        {"optimizer.b1": 0.9, "seed": 1},
    ]
    assert train.sweep_points(sweep) == product
    assert train.sweep_points(Config({"sweep": dict(sweep)}).sweep) == product
    assert train.sweep_points(sweep, "zip") == [product[0], product[3]]
    assert train.sweep_points(product[1:3]) == product[1:3]
    assert all(type(v) in (int, float) for point in product for v in point.values())
    json.dumps(train.sweep_points(sweep))


def test_random_points_come_of_their_seed():
    sweep = {
        RATE: {"loguniform": [1e-5, 1e-1]},
        "loss.epsilon": {"uniform": [-1, 3]},
        "batch_size": [32, 64],
    }
    points = train.sweep_points(sweep, "random:400")
    assert len(points) == 400 and points[:20] == train.sweep_points(sweep, "random:20")
    assert points[:20] == train.sweep_points(sweep, "random:20,seed=0")
    assert points[:20] != train.sweep_points(sweep, "random:20,seed=7")
    rates = np.log10([p[RATE] for p in points])
    assert rates.min() >= -5 and rates.max() <= -1
    np.testing.assert_allclose(np.quantile(rates, [0.25, 0.5, 0.75]), [-4, -3, -2], atol=0.3)
    epsilons = np.array([p["loss.epsilon"] for p in points])
    assert epsilons.min() >= -1 and epsilons.max() <= 3
    np.testing.assert_allclose(np.quantile(epsilons, [0.25, 0.5, 0.75]), [0, 1, 2], atol=0.3)
    assert {p["batch_size"] for p in points} == {32, 64}
    assert len(train.sweep_points({"seed": [0, 1, 2]}, "random:3")) == 3  # each once


@pytest.mark.parametrize(
    "sweep, by, message",
    [
        ({"seed": []}, "product", "seed has no values"),
        ({"seed": 3}, "product", "seed is 3; it takes a list"),
        ({"seed": [0, 1], RATE: [1]}, "zip", "optimizer.learning_rate has 1, seed has 2 values"),
        ({"seed": [0]}, "random", "did you mean 'random:N'"),
        ({"seed": [0]}, "random:0", "it takes product, zip"),
        ({"seed": [0, 1]}, "random:3", "2 distinct points; 3 are asked for"),
        ({"seed": [0, 1, 0]}, "product", "the point seed=0 twice"),
        ({RATE: {"uniform": [0, 1]}}, "product", "needs config.sweep_by='random:N'"),
        ({RATE: {"logunifrom": [1, 2]}}, "random:3", "did you mean 'loguniform'"),
        ({RATE: {"loguniform": [0, 1]}}, "random:3", "two numbers above 0, rising"),
        ({RATE: {"uniform": [2, 1]}}, "random:3", "two numbers, rising"),
        ([{"seed": 1}], "zip", "has no use"),
        ([{"seed": 1}, {}], "product", "is no point"),
        ([], "product", "no points"),
        (None, "product", "config.sweep is None"),
    ],
)
def test_mistakes_in_a_sweep(sweep, by, message):
    with pytest.raises(UserError, match=message) as error:
        train.sweep_points(sweep, by)
    assert "\n" not in str(error.value)


def test_names_are_readable_stable_and_paths():
    assert point_name({RATE: 1e-4, "seed": 0}) == "optimizer.learning_rate=0.0001,seed=0"
    losses = [point_name({"loss.fn": f"a:{x}"}) for x in ("b/c", "b c", "b:c")]
    assert len(set(losses)) == 3 and all(n.startswith("loss.fn=a-b-c-") for n in losses)
    assert losses[0] == "loss.fn=a-b-c-bebf210f"  # of every Python, on every day
    assert point_name({"a": (64, (1,))}) == point_name({"a": [64, [1]]})  # as JSON has it
    long = [point_name({"a": "x" * 300 + end}) for end in "yz"]
    assert len(set(long)) == 2 and max(map(len, long)) < 128


def count_fits(monkeypatch):
    """The workdirs that were trained in, from here on."""
    trained, fit = [], sweeps.fit

    def counted(config, workdir, **keywords):
        trained.append(workdir.name)
        return fit(config, workdir, **keywords)

    monkeypatch.setattr(sweeps, "fit", counted)
    return trained


def swept(**changes):
    config = tiny(steps=6, log_every=3, eval_every=3, checkpoint_every=0, **changes)
    config.sweep = {RATE: [1e-3, 1e-2], "seed": [0, 1]}
    return config


def test_a_sweep_that_was_killed_goes_on(tmp_path, monkeypatch, capsys):
    config, workdir = swept(), tmp_path / "rates"
    _COMPILED.clear()
    trained, log = count_fits(monkeypatch), Reporter.log

    def interrupt(self, step, values, *args):
        log(self, step, values, *args)
        if len(trained) == 3 and step == 3 and "loss" in values:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Reporter, "log", interrupt)
    with pytest.raises(train.Interrupted):
        train.run_sweep(config, workdir, progress=False)
    monkeypatch.setattr(Reporter, "log", log)
    done = json.loads((workdir / "sweep.json").read_text())["points"]
    assert [p["status"] for p in done] == ["finished", "finished", "waiting", "waiting"]
    capsys.readouterr()
    rows = train.run_sweep(config, workdir)
    said = capsys.readouterr().err
    assert "2 of 4 points are finished" in said and f"resuming {workdir}" in said
    assert "point 3 of 4: optimizer.learning_rate=0.01, seed=0" in said
    assert trained[3:] == trained[2:3] + ["optimizer.learning_rate=0.01,seed=1"]
    assert len(_COMPILED) == 2  # a program for each rate, none for a seed

    assert [row["point"] for row in rows] == train.sweep_points(config.sweep)
    killed, alone = rows[2], tmp_path / "alone"
    single = train.override(config, {**killed["point"], "sweep": None})
    assert killed["results"] == train.fit(single, alone, progress=False)[1]
    assert logged(workdir / killed["name"]) == logged(alone)
    assert len({row["results"]["test/nll"] for row in rows}) == 4
    assert json.loads((workdir / "sweep.json").read_text()) == {"points": rows}
    with open(workdir / "results.csv") as file:
        table = list(csv.DictReader(file))
    assert [float(line["test/nll"]) for line in table] == [r["results"]["test/nll"] for r in rows]
    assert [line["seed"] for line in table] == ["0", "1", "0", "1"]
    assert (workdir / "sweep.png").read_bytes().startswith(b"\x89PNG")

    trained.clear()
    assert train.run_sweep(config, workdir) == rows and not trained
    config.sweep.seed = [0, 1, 2]  # more points: those there are stay
    more = train.run_sweep(config, workdir, progress=False)
    assert more[:2] + more[3:5] == rows and len(trained) == 2
    config.batch_size = 32
    with pytest.raises(UserError, match="another config: batch_size is 64 there, 32 here"):
        train.run_sweep(config, workdir)


def test_a_signal_at_the_end_of_a_point_ends_the_sweep(tmp_path, monkeypatch, capsys):
    """The run is finished, and so takes no notice; more of them are to come."""
    trained, draw = count_fits(monkeypatch), Reporter.draw
    at_its_end = lambda *_, force=False: force and signal.raise_signal(signal.SIGTERM)  # noqa: E731
    monkeypatch.setattr(Reporter, "draw", at_its_end)
    with pytest.raises(train.Interrupted) as stopped:
        train.run_sweep(swept(), tmp_path, progress=False)
    assert stopped.value.code == 143 and len(trained) == 1
    assert "SIGTERM: 1 points are finished; the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(Reporter, "draw", draw)
    rows = train.run_sweep(swept(), tmp_path, progress=False)
    assert len(trained) == 4 and {row["status"] for row in rows} == {"finished"}


def test_points_of_one_program_run_one_after_another(tmp_path, monkeypatch):
    config = tiny()
    config.sweep = [{RATE: r, "seed": s} for s in (0, 1) for r in (1e-3, 1e-2)]
    ran = []

    def fit(config, workdir, progress):
        workdir.mkdir(parents=True)
        ran.append(workdir.name)
        return None, {}

    monkeypatch.setattr(sweeps, "fit", fit)
    train.run_sweep(config, tmp_path / "rates")
    assert [name.endswith("seed=1") for name in ran] == [False, True, False, True]
    assert ran[0].startswith("optimizer.learning_rate=0.001") and len(set(ran)) == 4


def test_points_that_diverge_are_told_and_do_not_stop_the_others(tmp_path, monkeypatch, capsys):
    config = swept()
    spoiled = {"fn": "tests.train.tiny:spoiled_loss", "inputs": ("logits", "label", "step")}
    config.loss = {**spoiled, "at": 2}
    config.sweep = {"steps": [6, 2]}
    rows = train.run_sweep(config, tmp_path / "run")
    assert [row["status"] for row in rows] == ["diverged", "finished"]
    assert rows[0]["why"] == "loss is nan at step 3" and rows[0]["results"] == {}
    assert "diverged, loss is nan at step 3; the other points go on" in capsys.readouterr().err
    assert best_point(config, rows)[0] == {"steps": 2}
    trained = count_fits(monkeypatch)
    assert train.run_sweep(config, tmp_path / "run") == rows and not trained


def test_one_point_by_its_index_then_all_gathered(tmp_path, monkeypatch):
    config, workdir = swept(), tmp_path / "rates"
    trained = count_fits(monkeypatch)
    rows = train.run_sweep(config, workdir, 2, progress=False)
    assert trained == ["optimizer.learning_rate=0.01,seed=0"]
    assert [row["status"] for row in rows] == ["waiting", "waiting", "finished", "waiting"]
    assert [path.name for path in workdir.iterdir()] == trained  # nothing that another writes too
    train.run_sweep(config, workdir, 2, progress=False)
    assert len(trained) == 1
    rows = train.run_sweep(config, workdir, progress=False)
    assert len(trained) == 4 and {row["status"] for row in rows} == {"finished"}
    for index in (-1, 4):
        with pytest.raises(UserError, match="the points are 0 to 3"):
            train.run_sweep(config, workdir, index)


def test_what_cannot_be_swept_is_refused_before_anything_runs(tmp_path, monkeypatch):
    trained = count_fits(monkeypatch)

    def refused(message, workdir=tmp_path / "run", **changes):
        config = tiny()
        for key, value in changes.items():
            config[key] = value
        with pytest.raises(UserError, match=message) as error:
            train.run_sweep(config, workdir)
        assert "\n" not in str(error.value) and not trained and not (tmp_path / "run").exists()

    refused("did you mean 'steps'", sweep={"stepz": [1, 2]})
    refused("config.steps is 40", sweep={"steps": ["many"]})
    refused("did you mean 'cross_entropy'", sweep={"loss.fn": ["tinker.losses:cross_entropi"]})
    refused("did you mean 'learning_rate'", sweep={"optimizer.learning_rat": [1e-3, 1e-2]})
    late = [{"optimizer.b1": 0.9}, {"model.widht": 3}]
    refused("at model.widht=3: model: .*did you mean 'width'", sweep=late)
    refused("a study is not swept", sweep={"seed": [0]}, arms={"a": {}})
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "config.json").write_text("{}")
    refused("holds a single run", tmp_path / "single", sweep={"seed": [0]})


def test_a_single_run_and_a_sweep_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="config.sweep is of several runs"):
        train.fit(swept(), progress=False)
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match="has sweep.json but no config.json"):
        train.fit(tiny(steps=1), tmp_path, progress=False)


def row(value, **point):
    point = {k.replace("_", "."): v for k, v in point.items()}
    status, results = "finished", {"test/nll": value}
    if value is None:
        status, results = "diverged", {}
    return {"name": "", "point": point, "status": status, "results": results, "seconds": 1.0}


def test_the_best_point_is_the_best_over_seeds():
    table = [(1, 0, 0.1), (1, 1, 0.9), (2, 0, 0.3), (2, 1, 0.4), (3, 0, 0.2), (3, 1, None)]
    rows = [row(value, a=a, seed=seed) for a, seed, value in table]
    assert best_point(tiny(), rows) == ({"a": 2}, pytest.approx(0.35))
    assert best_point(tiny(keep_best="max:test/nll"), rows) == ({"a": 1}, pytest.approx(0.5))
    assert best_point(tiny(), rows[-1:]) is None


@pytest.fixture
def drawn(monkeypatch):
    """``drawn(rows)``: the figure of a sweep."""
    figures, init = [], matplotlib.figure.Figure.__init__

    def noted(self, *args, **keywords):
        figures.append(self)
        init(self, *args, **keywords)

    monkeypatch.setattr(matplotlib.figure.Figure, "__init__", noted)

    def draw(rows):
        assert draw_sweep(rows, "test/nll", "title").startswith(b"\x89PNG")
        return figures[-1]

    return draw


def test_a_line_over_one_key(drawn):
    rates = [1e-4, 1e-3, 1e-2]
    rows = [row(i + seed, rate=r, seed=seed) for i, r in enumerate(rates) for seed in (0, 1)]
    (axes,) = drawn([*rows, row(None, rate=1.0, seed=0)]).axes
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "rate"
    dots, line, crosses = axes.lines
    assert len(dots.get_xdata()) == 7 and list(crosses.get_xdata()) == [1.0]
    np.testing.assert_allclose(line.get_ydata(), [0.5, 1.5, 2.5, np.nan])
    (axes,) = drawn([row(i, width=w) for i, w in enumerate([16, 32, 64])]).axes
    assert axes.get_xscale() == "linear"
    (axes,) = drawn([row(i, fn=f"a:{w}") for i, w in enumerate("xyz")]).axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["x", "y", "z"]


def test_a_heat_map_over_a_grid_of_two_keys_and_dots_where_there_is_none(drawn):
    grid = [row(a * b, a=a, b=b, seed=s) for a in (1, 2, 3) for b in (5, 7) for s in (0, 1)]
    figure = drawn(grid)
    (image,) = figure.axes[0].images
    np.testing.assert_array_equal(image.get_array(), [[5, 7], [10, 14], [15, 21]])
    assert figure.axes[0].get_xlabel() == "b" and figure.axes[0].get_ylabel() == "a"
    assert len(drawn(grid[:-2]).axes) == 2  # a cell is missing: a panel for each key
    three = [row(a + b + c, a=a, b=b, c=c) for a in (1, 2) for b in (1, 2) for c in (1, 2)]
    assert [axes.get_xlabel() for axes in drawn(three).axes] == ["a", "b", "c"]


def test_sorted_dots_over_seeds_alone(drawn):
    (axes,) = drawn([row(v, seed=s) for s, v in enumerate([0.3, 0.1, 0.2])]).axes
    assert list(axes.lines[0].get_ydata()) == [0.1, 0.2, 0.3]
    assert drawn([row(None, seed=s) for s in (0, 1)]).axes  # nothing to draw is drawn as that
