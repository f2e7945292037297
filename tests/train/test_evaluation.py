"""Evaluation: whole splits, equal to NumPy over the examples there are."""

import jax
import numpy as np
import pytest

from tests.train.tiny import tiny
from tinker import data, train
from tinker.numerics import UserError
from tinker.train import feeding

SCORES = ("logits", "label")
METRICS = {
    "accuracy": {"fn": "tinker.metrics:accuracy", "inputs": SCORES},
    "nll": {"fn": "tinker.metrics:nll", "inputs": SCORES},
    "macro": {"fn": "tests.train.tiny:macro_accuracy", "inputs": SCORES},
    "margin": {"fn": "tests.train.tiny:largest_margin", "inputs": SCORES, "split": "test"},
    "square": {"fn": "jax.numpy:square", "inputs": ("logits",)},  # [batch, classes]
}


@pytest.fixture(scope="module")
def built():
    config = tiny(metrics=METRICS, eval_batch_size=50)
    program = train.build(config)
    dataset = data.load("digits", "train")
    batch = {k: v[:64] for k, v in dataset.source.items()}
    return config, program, jax.jit(program.init)(jax.random.key(1), batch)


@pytest.mark.parametrize("held", [True, False])
def test_metrics_of_a_split_equal_numpy(built, monkeypatch, held):
    if not held:
        monkeypatch.setattr(feeding, "RESIDENT_BYTES", 0)
    config, program, state = built
    results = train.evaluate(program, state, config, splits=("test", "validation"))
    for split in ("test", "validation"):
        source = data.load("digits", split).source
        label = source["label"]
        assert len(label) % 50  # the last batch is padded
        logits = np.asarray(program.predict(state, source)["logits"], np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        right = logits.argmax(-1) == label
        expected = {
            "accuracy": right.mean(),
            "nll": -log_p[np.arange(len(label)), label].mean(),
            "macro": np.mean([right[label == c].mean() for c in range(10)]),
            "square": np.square(logits).mean(),
        }
        for name, value in expected.items():
            assert results[f"{split}/{name}"] == pytest.approx(value, rel=1e-5), name
        margin = (logits.max(-1) - logits.mean(-1)).max()
        if split == "test":
            assert results["test/margin"] == pytest.approx(margin, rel=1e-5)
        else:
            assert "validation/margin" not in results


def test_a_batch_size_does_not_matter(built):
    config, program, state = built
    fifty = train.evaluate(program, state, config)
    config = train.override(config, {"eval_batch_size": 512})  # one batch, mostly padding
    assert train.evaluate(program, state, config) == pytest.approx(fifty, rel=1e-6)


def test_a_metric_that_loses_the_examples_is_refused(built):
    config, program, state = built
    config = tiny(metrics={"mean": {"fn": "tests.train.tiny:mean_logit", "inputs": ("logits",)}})
    with pytest.raises(UserError, match="must give a value per example") as error:
        train.evaluate(program, state, config)
    assert "\n" not in str(error.value)
