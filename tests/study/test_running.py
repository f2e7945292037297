"""The study engine on an experiment whose answer is known."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tinker import papers, study
from tinker.numerics import UserError, fold_in
from tinker.study import claims
from tinker.train.specs import Config, resolve

CALLS = []


def experiment(config, key):
    """Values that a seed shares between arms, plus the arm's shift; the rate has its best at 2."""
    import jax

    CALLS.append((config.shift, config.rate, tuple(config.get("eval_splits", ()))))
    noise = float(jax.random.normal(fold_in(key, "noise")))
    error = noise + config.shift + (config.rate - 2.0) ** 2
    curve = np.linspace(1.0, error, 4)
    return {"test/error": error, "validation/error": error, "curve": curve}


def small(**changes):
    return Config(
        {
            "experiment": f"{__name__}:experiment",
            "seeds": 4,
            "shift": 0.0,
            "rate": 1.0,
            "eval_splits": ("test",),
            "arms": {"plain": {}, "better": {"shift": -1.0}},
            "tune": {"rate": [1.0, 2.0, 3.0]},
            "tune_by": {"metric": "validation/error", "minimize": True, "seeds": 2},
            "claims": [
                {
                    "metric": "test/error",
                    "arm": "better",
                    "over": "plain",
                    "at_most": -0.5,
                    "primary": True,
                },
                {"metric": "test/error", "arm": "plain", "over": "better", "at_most": 0.0},
            ],
            **changes,
        }
    )


def test_a_study_tunes_pairs_and_judges(tmp_path, monkeypatch):
    CALLS.clear()
    seen = []
    found = study.run_study(small(), tmp_path, name="x", progress=lambda *a: seen.append(a))
    assert len(CALLS) == 2 * (3 * 2 + 4)
    assert {splits for _, _, splits in CALLS[:12]} == {("validation",)}
    assert {(rate, splits) for _, rate, splits in CALLS[12:]} == {(2.0, ("test",))}
    assert found["tuned"]["chosen"] == {"plain": {"rate": 2.0}, "better": {"rate": 2.0}}
    assert found["tuned"]["edge"] == {"plain": [], "better": []}
    plain, better = (np.array(found["values"][a]["test/error"]) for a in ("plain", "better"))
    np.testing.assert_allclose(better - plain, -1.0, atol=1e-12)
    assert len(set(plain)) == 4
    assert found["verdict"] == "supported"
    assert [c["verdict"] for c in found["claims"]] == ["supported", "contradicted"]
    assert seen[-1][:2] == (20, 20)
    # again: nothing is computed twice, and the report is the same
    count = len(CALLS)
    again = study.run_study(small(), tmp_path, name="x")
    assert len(CALLS) == count
    assert again == found
    with pytest.raises(UserError, match="another config"):
        study.run_study(small(seeds=5), tmp_path, name="x")
    # other words and another claim need no other runs
    claim = {"metric": "test/error", "arm": "plain", "at_most": -9.0, "primary": True}
    other = small(note="in other words", figure={"kind": "arms"}, claims=[claim])
    assert study.run_study(other, tmp_path, name="x")["verdict"] == "contradicted"
    assert len(CALLS) == count
    assert study.config_hash(other) != study.config_hash(small())
    assert study.config_hash(small(note="x", figure={})) == study.config_hash(small())
    # what other code found is not mixed with what this code finds
    monkeypatch.setattr("tinker.study.running.code_hash", lambda *_: "other")
    study.run_study(small(), tmp_path, name="x")
    assert len(CALLS) == 2 * count


def test_a_killed_study_goes_on_where_it_was(tmp_path):
    CALLS.clear()
    whole = study.run_study(small(), tmp_path / "whole", name="x")
    for stop in (3, 14):
        CALLS.clear()
        folder = tmp_path / str(stop)
        interrupted = small()
        original = globals()["experiment"]

        def stopping(config, key, stop=stop, original=original):
            if len(CALLS) == stop:
                raise KeyboardInterrupt
            return original(config, key)

        globals()["experiment"] = stopping
        try:
            with pytest.raises(KeyboardInterrupt):
                study.run_study(interrupted, folder, name="x")
        finally:
            globals()["experiment"] = original
        found = study.run_study(interrupted, folder, name="x")
        assert len(CALLS) == 20
        for arm in found["values"]:
            assert found["values"][arm]["test/error"] == whole["values"][arm]["test/error"]
        assert [c["low"] for c in found["claims"]] == [c["low"] for c in whole["claims"]]


SLOW = """
import functools, sys, time
from tests.study import test_running as t
from tinker import study

quick = t.experiment

@functools.wraps(quick)
def slow(config, key):
    time.sleep(0.05)
    return quick(config, key)

t.experiment = slow
study.run_study(t.small(), sys.argv[1], name="x")
"""


def test_sigkills_at_random_moments_change_nothing(tmp_path):
    whole = study.run_study(small(), tmp_path / "whole", name="x")
    rng, folder = random.Random(), tmp_path / "killed"
    root = pathlib.Path(__file__).parents[2]
    for share in (0.2, 0.7):
        child = subprocess.Popen([sys.executable, "-c", SLOW, str(folder)], cwd=root)
        while child.poll() is None and len(list(folder.rglob("*-*.json"))) < 20 * share:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.15))
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*-*.json")}
    assert 14 <= len(kept) < 20
    CALLS.clear()
    found = study.run_study(small(), folder, name="x")
    assert len(CALLS) == 20 - len(kept)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    reports = []
    for each in (whole, found):
        for values in each["values"].values():
            del values["seconds"]
        reports.append({k: v for k, v in each.items() if k != "seconds"})
    assert reports[0] == reports[1]


def test_the_best_on_the_edge_is_flagged(tmp_path):
    found = study.run_study(small(tune={"rate": [2.0, 3.0]}), tmp_path, name="x")
    assert found["tuned"]["edge"]["plain"] == ["rate"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"claims": []}, "config.claims is not set"),
        ({"claims": [{"metric": "m", "arm": "plain", "at_least": 0}]}, "exactly one claim"),
        ({"seeds": 2}, "at least 3"),
        ({"experiment": "trian"}, "no tinker.experiments.trian"),
        ({"tune_by": None}, "needs config.tune_by"),
    ],
)
def test_a_study_that_cannot_be_judged_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        study.run_study(small(**changes), tmp_path, name="x")


def test_a_wrong_arm_or_metric_names_the_nearest(tmp_path):
    claim = {"metric": "test/eror", "arm": "plain", "at_least": 0.0, "primary": True}
    with pytest.raises(UserError, match="did you mean 'test/error'"):
        study.run_study(small(claims=[claim], tune={}), tmp_path, name="x")
    claim = {"metric": "test/error", "arm": "plane", "at_least": 0.0, "primary": True}
    with pytest.raises(UserError, match="did you mean 'plain'"):
        study.run_study(small(claims=[claim]), tmp_path / "b", name="x")


def test_a_report_holds_what_was_found_and_draws(tmp_path):
    config = small()
    config.figure = [
        {"kind": "arms", "metric": "test/error"},
        {"kind": "curves", "metric": "curve"},
        {"kind": "trade", "x": "test/error", "y": "validation/error"},
    ]
    found = study.run_study(config, tmp_path, name="x")
    report = study.make_report("x", "room/theme:x", config, found)
    text = json.dumps(report, allow_nan=False)
    (tmp_path / "report.json").write_text(text)
    again = study.read_report(tmp_path)
    assert again["verdict"] == "supported"
    assert again["config_hash"] == study.config_hash(config) == study.config_hash(small())
    assert study.draw(again).startswith(b"\x89PNG")
    table = study.load(tmp_path)
    assert len(table) == 8
    np.testing.assert_allclose(
        table[table.arm == "plain"]["test/error"], found["values"]["plain"]["test/error"]
    )


def test_claim_functions():
    values = {
        "a": {"m": [1.0, 2.0], "curve": [[4.0, 2.0, 1.0], [4.0, 3.0, 2.0]]},
        "b": {"m": [2.0, 6.0], "curve": [[4.0, 3.0, 2.0], [4.0, 3.0, 1.0]]},
        "c": {"m": [4.0, 4.0], "curve": [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]},
    }
    np.testing.assert_allclose(claims.ratio(values, metric="m", arm="b", over="a"), [2, 3])
    np.testing.assert_allclose(claims.difference(values, metric="m", arm="b", over="a"), [1, 4])
    arms = {"a": 0.0, "b": 1.0, "c": 2.0}
    expected = [np.polyfit([0, 1, 2], y, 1)[0] for y in ([1, 2, 4], [2, 6, 4])]
    np.testing.assert_allclose(claims.slope(values, metric="m", arms=arms), expected)
    np.testing.assert_allclose(
        claims.slope(values, metric="m", arms={"a": 1.0, "b": 2.0, "c": 4.0}, log=True)[0], 1.0
    )
    np.testing.assert_allclose(
        claims.spearman(values, metric="m", arms=["a", "b", "c"]), [1.0, 0.5]
    )
    np.testing.assert_allclose(
        claims.argmax_inside(values, metric="m", arms=["a", "b", "c"]), [0.0, 1.0]
    )
    reached = claims.steps_to(values, metric="curve", arm="a", over="b")
    np.testing.assert_allclose(reached, [2 / 3, 4 / 3])
    better = claims.dominates(values, metric="curve", arm="a", over="b", minimize=True)
    np.testing.assert_allclose(better, [1.0, 2 / 3])


@pytest.mark.parametrize("name", papers.rows())
def test_every_row_resolves_and_its_report_is_of_its_config(name):
    row = papers.rows()[name]
    assert {"id", "title", "source", "functions", "study", "claim", "checked"} <= row.keys()
    assert row["checked"] in ("official", "equation", "both")
    for path in row["functions"]:
        assert callable(resolve(path))
    _, place, config = study.load_study(name)
    assert place == row["study"]
    assert study.staleness(name, config) in ("fresh", "code"), "publish the study again"


def test_the_page_of_papers_is_fresh():
    page = pathlib.Path(__file__).parents[2] / "docs" / "papers.md"
    assert page.read_text() == study.overview(markdown=True), (
        "tinker papers --markdown > docs/papers.md"
    )


def test_an_unknown_study_names_the_nearest():
    assert study.find("polyloss") == ("polyloss", "losses/classification:polyloss")
    assert study.find("losses/classification.py:polyloss,full")[0] == "polyloss"
    with pytest.raises(UserError, match="did you mean 'polyloss'"):
        study.find("polylos")
