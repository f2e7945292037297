"""Sweeps by flags, and evaluation as a job of its own, as the command runs them."""

import json
import shlex

import pytest

from tests.train.tiny import rows
from tinker.cli import main
from tinker.cli.parsing import listed, parse


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Learning curves take longer to draw than these runs take."""
    monkeypatch.setattr("tinker.train.reporting.curves", lambda *_: b"")


@pytest.mark.parametrize(
    "text, values",
    [
        ("1e-4,3e-4", [1e-4, 3e-4]),
        ("3", [3]),
        ("optax:adam,optax:sgd", ["optax:adam", "optax:sgd"]),
        ("None,a:b,(1, 2)", [None, "a:b", (1, 2)]),
        ("[(64,), (64, 64)]", [(64,), (64, 64)]),
        ("'a,b'", ["a,b"]),
        ("{'uniform': [0, 1]}", {"uniform": [0, 1]}),
        ("", []),
    ],
)
def test_a_flag_lists_values(text, values):
    assert listed(text) == values
    overrides = parse(["train", "--config=x", "--workdir=y", f"--sweep.a.b={text}"]).args[1]
    assert overrides == {"sweep": {"a.b": values}}


@pytest.mark.parametrize(
    "line, hint",
    [
        ("train --config=JOB --workdir=W --sweep.stepz=1,2", "did you mean 'steps'"),
        ("train --config=JOB --workdir=W --sweep.seed", "--sweep.seed=VALUE,…"),
        ("train --config=JOB --workdir=W --sweep.seed=", "seed has no values"),
        ("train --config=JOB --workdir=W --sweep_index=1", "--sweep.KEY=VALUE"),
        ("train --config=JOB --workdir=W --sweep.seed=0,1 --sweep_index=2", "points are 0 to 1"),
        ("train --config=JOB --workdir=W --sweep.seed=0 --config.sweep_by=zap", "'zip'"),
        ("train --config=losses/classification:polyloss --workdir=W --sweep.seed=0", "a study is"),
        ("study polyloss --sweep.seed=0,1", "a study is not swept"),
        ("eval --workdir=W --sweep.seed=0,1", "--sweep.seed"),
        ("eval --workdir=W --timeout=3", "--timeout is for --follow"),
        ("eval --workdir=W --follow --step=3", "leave out --step"),
    ],
)
def test_a_mistake_is_one_line(line, hint, job, tmp_path, capsys):
    line = line.replace("JOB", str(job)).replace("W", str(tmp_path / "run"))
    line = line.replace("train", "train --processes=1", 1)  # no cluster is looked for
    assert main(shlex.split(line)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("tinker: ") and err.count("\n") == 1 and hint in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("keys", [["seed"], ["seed", "optimizer.learning_rate"]])
def test_print_config_gives_a_sweep_back(keys, job, capsys):
    def printed(*flags):
        assert main(["train", f"--config={job}", "--print_config=flags", *flags]) == 0
        return capsys.readouterr().out

    flags = printed(*(f"--sweep.{key}=0.1,0.2" for key in keys))
    assert "0.1" in flags and printed(*shlex.split(flags)) == flags


def test_a_sweep_point_by_point_then_gathered_and_followed(job, tmp_path, capsys):
    workdir = tmp_path / "seeds"
    argv = ["train", f"--config={job}:2", f"--workdir={workdir}", "--sweep.seed=0,1"]
    argv += ["--processes=1"]  # JAX has begun to compute by the second call
    assert main([*argv, "--sweep_index=1"]) == 0
    assert "1 of 2 points are left" in capsys.readouterr().out
    assert main(argv) == 0
    out = capsys.readouterr().out
    points = json.loads((workdir / "sweep.json").read_text())["points"]
    mean = sum(point["results"]["test/accuracy"] for point in points) / 2
    for point in points:
        assert f"{point['results']['test/nll']:.6g}" in out
    assert f"best test/accuracy: {mean:.6g}" in out
    assert main([*argv, "--sweep_index=0"]) == 0
    assert "all points are finished" in capsys.readouterr().out

    followed = f"--workdir={workdir / 'seed=0'}", "--follow", f"--output={tmp_path / 'evals'}"
    assert main(["eval", *followed, "--split=test,validation", "--timeout=60"]) == 0
    shown = capsys.readouterr().out
    (row,) = rows(tmp_path / "evals")
    assert row["step"] == 2 and row["test/nll"] == points[0]["results"]["test/nll"]
    assert f"{row['validation/nll']:.6g}" in shown
