"""Studies of losses of numbers."""

from tinker.train import default_config


def base():
    """A perceptron that forecasts the next eight values of a noisy season."""
    config = default_config()
    config.experiment = "train"
    config.data = {
        "source": "synthetic:seasonal_series",
        "size": 1000,
        "validation_size": 1000,
        "test_size": 2000,
    }
    config.model = {
        "fn": "tinker.models:MLP",
        "inputs": ("series",),
        "hidden": (64,),
        "classes": 8,
    }
    config.loss = {"fn": "optax:huber_loss", "inputs": ("logits", "target"), "delta": 0.5}
    config.metrics = {
        "error": {"fn": "tinker.losses:absolute_error", "inputs": ("logits", "truth")},
        "observed": {"fn": "tinker.losses:absolute_error", "inputs": ("logits", "target")},
    }
    config.optimizer = {"fn": "optax:adam", "learning_rate": 3e-3}
    config.steps = 400
    config.seeds = 10
    config.tune = {"optimizer.learning_rate": [1e-3, 3e-3, 1e-2]}
    config.tune_by = {"metric": "validation/observed", "minimize": True, "seeds": 1}
    return config


def regression_losses(config):
    """Losses of forecasts where noise has heavy tails, and where it has not.

    The survey trains a temporal fusion transformer on electricity, traffic, sales and volatility,
    and compares each loss by every other; here it is a perceptron on seasons with Gaussian noise,
    or Student's with 2 degrees of freedom, and what counts is the distance to the future without
    noise. Learning rates are tuned by the absolute error to what is observed. The Huber loss turns
    at 0.5, as in the survey's code. Percentages, logarithms and quantiles are of no use for a mean
    around 0, and not here.
    """
    heavy = {"data.tails": 2.0}
    fns = {
        "squared": {"loss.fn": "optax:l2_loss"},
        "absolute": {"loss.fn": "tinker.losses:absolute_error"},
        "huber": {},
        "log_cosh": {"loss.fn": "optax:log_cosh"},
    }
    config.arms = {f"{name}_heavy": {**changes, **heavy} for name, changes in fns.items()}
    config.arms.update({f"{name}_gaussian": fns[name] for name in ("squared", "huber")})
    claim = {"metric": "test/error", "over": "squared_heavy", "at_most": 0.0}
    config.claims = [
        {
            **claim,
            "arm": "huber_heavy",
            "primary": True,
            "margin": 0.005,
            "text": "distance to the future, of heavy tails: Huber over squared",
        },
        {**claim, "arm": "absolute_heavy"},
        {**claim, "arm": "log_cosh_heavy"},
        {
            "metric": "test/error",
            "arm": "huber_gaussian",
            "over": "squared_gaussian",
            "within": (-0.01, 0.01),
            "text": "of Gaussian noise they are alike",
        },
    ]
    config.figure = [
        {"kind": "arms", "metric": "test/error", "label": "mean distance to the future"},
        {"kind": "arms", "metric": "test/observed", "label": "mean absolute error"},
    ]
