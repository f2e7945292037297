"""Specs: what a config may say, and what it is told when it cannot be."""

import functools

import ml_collections
import numpy as np
import optax
import pytest

from tinker import losses, train
from tinker.numerics import UserError
from tinker.train.specs import check_call

HERE = __name__


def base():
    config = train.default_config()
    config.model = {"fn": "tinker.models:MLP", "hidden": (8,), "inputs": ("image",)}
    config.loss = {"fn": "tinker.losses:focal", "gamma": 1.0, "inputs": ("logits", "label")}
    config.optimizer = {"fn": "optax:sgd", "learning_rate": 0.1}
    config.data = {"source": "digits"}
    return config


def one_input(logits, *, strength=1.0):
    return strength * logits.sum(-1)


def two_inputs(logits, labels, *, margin):
    return logits.sum(-1) + labels + margin


def refuses(value=1):
    raise ValueError("value must be 3")


def test_resolve_finds_dotted_names():
    assert train.resolve("tinker.losses:focal") is losses.focal
    assert train.resolve("optax:contrib.muon") is optax.contrib.muon


@pytest.mark.parametrize(
    "path, message",
    [
        ("tinker.losses.focal", "not of the form 'package.module:name'"),
        ("tinker.losses:focl", "tinker.losses has no 'focl'.*did you mean 'focal'"),
        ("tinker.lossses:focal", "no module 'tinker.lossses'.*did you mean 'tinker.losses'"),
        ("optx:sgd", "no module 'optx'"),
    ],
)
def test_a_wrong_path_names_the_nearest(path, message):
    with pytest.raises(UserError, match=message) as error:
        train.resolve(path)
    assert "\n" not in str(error.value)


def test_nested_specs_are_built_first_or_passed_as_functions():
    built = train.instantiate(
        {
            "fn": "optax:adamw",
            "learning_rate": {
                "fn": "optax:linear_schedule",
                "init_value": 1.0,
                "end_value": 0.0,
                "transition_steps": 4,
            },
            "mask": {"fn": f"{HERE}:one_input", "partial": True, "strength": 2.0},
        },
        "optimizer",
    )
    assert isinstance(built, optax.GradientTransformation)
    part = train.instantiate({"fn": f"{HERE}:one_input", "partial": True, "strength": 2.0}, "x")
    assert isinstance(part, functools.partial)
    assert part(np.ones(3)) == 6.0


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"fn": "optax:adamw"}, "optax:adamw needs learning_rate"),
        ({"fn": "optax:adamw", "learning_rat": 1.0}, "no keyword 'learning_rat'.*'learning_rate'"),
        ({"fn": f"{HERE}:refuses"}, "refuses refused its keywords: value must be 3"),
        (
            {"fn": "jax.nn:initializers.variance_scaling", "scale": 2.0, "partial": True},
            "'scale' is a key of the config's own",
        ),
    ],
)
def test_a_wrong_keyword_names_what_is_taken(spec, message):
    with pytest.raises(UserError, match=message):
        train.instantiate(spec, "optimizer")


def test_inputs_count_as_arguments():
    check_call(two_inputs, "f", {"margin": 1}, "loss", positional=2)
    with pytest.raises(UserError, match="needs margin"):
        check_call(two_inputs, "f", {}, "loss", positional=2)
    with pytest.raises(UserError, match="needs labels"):
        check_call(two_inputs, "f", {"margin": 1}, "loss", positional=1)
    with pytest.raises(UserError, match=r"takes 2 inputs \(logits, labels\), 3 are given"):
        check_call(two_inputs, "f", {"margin": 1}, "loss", positional=3)


def test_override_swaps_a_function_whole():
    config = base()
    new = train.override(
        config, {"loss.label_smoothing": 0.1, "loss.fn": "tinker.losses:cross_entropy"}
    )
    assert new.loss.to_dict() == {
        "fn": "tinker.losses:cross_entropy",
        "inputs": ("logits", "label"),
        "label_smoothing": 0.1,
    }
    assert config.loss.fn == "tinker.losses:focal"  # the given one is not changed
    new = train.override(config, {"loss.fn": f"{HERE}:one_input"})
    assert "inputs" not in new.loss and "gamma" not in new.loss
    new = train.override(config, {"model.fn": "tinker.models:CNN"})
    assert new.model.to_dict() == {"fn": "tinker.models:CNN", "inputs": ("image",)}


def test_override_reaches_into_none_lists_and_numbers():
    config = base()
    new = train.override(config, {"gradient.fn": "tinker.optim:sam", "gradient.rho": 0.1})
    assert new.gradient.to_dict() == {"fn": "tinker.optim:sam", "rho": 0.1}
    config.loss = [dict(fn="tinker.losses:focal", scale=1.0), dict(fn="tinker.losses:focal")]
    new = train.override(config, {"loss.0.scale": 2, "loss.1.gamma": 3.0})
    assert new.loss[0]["scale"] == 2.0 and new.loss[1]["gamma"] == 3.0
    new = train.override(
        base(),
        {
            "optimizer.learning_rate.fn": "optax:constant_schedule",
            "optimizer.learning_rate.value": 0.3,
        },
    )
    assert new.optimizer.learning_rate.to_dict() == {"fn": "optax:constant_schedule", "value": 0.3}
    new = train.override(new, {"optimizer.learning_rate": 0.5, "data.source": "wine"})
    assert new.optimizer.learning_rate == 0.5 and new.data.source == "wine"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stepz": 3}, "no config.stepz.*did you mean 'steps'"),
        ({"steps": 3.5}, "config.steps is 1000 \\(int\\); 3.5 is of type float"),
        ({"steps": "many"}, "config.steps is 1000 \\(int\\); 'many' is of type str"),
        ({"mesh.dat": 2}, "no config.mesh.dat.*did you mean 'data'"),
        ({"loss.fn": "tinker.losses:focall"}, "did you mean 'focal'"),
        ({"steps.fn.x": 1}, "config.steps is 1000, it has no"),
        ({"loss.0.scale": 1.0}, "loss: tinker.losses:focal has no keyword '0'"),
    ],
)
def test_a_wrong_override_is_told_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as error:
        train.build(train.override(base(), changes), {})
    assert "\n" not in str(error.value)


def test_override_gives_a_config():
    new = train.override(base(), {"steps": 7, "compute_dtype": "bfloat16"})
    assert isinstance(new, ml_collections.ConfigDict)
    assert new.steps == 7
