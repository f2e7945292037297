"""Studies of losses of margins, where a network learns its examples by heart."""

from tinker.train import default_config


def base():
    """Two half circles that overlap, 200 examples, and far more weights."""
    config = default_config()
    config.experiment = "train"
    config.data = {
        "source": "synthetic:two_moons",
        "noise": 0.4,
        "size": 200,
        "validation_size": 1000,
        "test_size": 5000,
    }
    config.model = {
        "fn": "tinker.models:MLP",
        "inputs": ("features",),
        "hidden": (256, 256),
        "classes": 2,
    }
    config.metrics = {
        "accuracy": {"fn": "tinker.metrics:accuracy", "inputs": ("logits", "label")},
    }
    config.optimizer = {"fn": "optax:sgd", "learning_rate": 0.1, "momentum": 0.9}
    config.batch_size = 50
    config.steps = 1000
    config.log_every = 100
    config.eval_splits = ("train", "test")
    config.seeds = 10
    config.tune = {"optimizer.learning_rate": [0.03, 0.1, 0.3]}
    config.tune_by = {"metric": "validation/accuracy", "minimize": False, "seeds": 1}
    return config


def ensloss(config):
    """A loss drawn anew for each batch, against each fixed one that it may be.

    The paper has pairs of classes of CIFAR-10 with convolutional networks, and fourteen tables with
    perceptrons of up to five layers; here it is two half circles whose classes overlap, and a
    perceptron of two layers and 67,000 weights for 200 examples. As in the authors' experiments
    only the draws change from batch to batch, not the family they are of. Learning rates are tuned
    for each loss by right labels of a validation split. Steps were halved, for time, after a first
    run. Where the exponential loss diverges its claim has no estimate; the authors clip it.
    """
    config.arms = {
        "logistic": {},
        "hinge": {"loss.fn": "optax:losses.multiclass_hinge_loss"},
        "exponential": {"loss.fn": "tinker.losses:comp_sum", "loss.tau": 0.0},
        "drawn": {
            "loss.fn": "tinker.losses:random_calibrated_loss",
            "loss.inputs": ("key", "logits", "label"),
        },
    }
    claim = {"metric": "test/accuracy", "arm": "drawn", "at_least": 0.0}
    config.claims = [
        {**claim, "over": "logistic", "margin": 0.002, "primary": True},
        {**claim, "over": "hinge"},
        {**claim, "over": "exponential"},
        {
            "metric": "train/accuracy",
            "arm": "drawn",
            "over": "logistic",
            "at_most": 0.0,
            "text": "accuracy on what it was trained on, drawn over logistic: it overfits less",
        },
    ]
    config.figure = [
        {"kind": "arms", "metric": "test/accuracy", "label": "test accuracy"},
        {"kind": "arms", "metric": "train/accuracy", "label": "accuracy on what was trained on"},
    ]
