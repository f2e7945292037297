"""Studies of classification losses, on characters drawn from fonts."""

from tinker.train import default_config


def base():
    """A two-layer network on 62 characters; every seed draws its own examples."""
    config = default_config()
    config.experiment = "train"
    config.data = {
        "source": "glyphs",
        "classes": 62,
        "size": 4000,
        "validation_size": 1000,
        "test_size": 4000,
    }
    config.model = {
        "fn": "tinker.models:MLP",
        "inputs": ("image",),
        "hidden": (256,),
        "classes": 62,
    }
    config.metrics = {
        "accuracy": {"fn": "tinker.metrics:accuracy", "inputs": ("logits", "label")},
        "nll": {"fn": "tinker.metrics:nll", "inputs": ("logits", "label")},
        "p_target": {"fn": "tinker.metrics:target_probability", "inputs": ("logits", "label")},
    }
    config.optimizer = {"fn": "optax:adamw", "learning_rate": 1e-3, "weight_decay": 1e-4}
    config.steps = 400
    config.seeds = 10
    config.tune = {"optimizer.learning_rate": [2e-3, 4e-3, 8e-3, 1.6e-2]}
    config.tune_by = {"metric": "validation/accuracy", "minimize": False, "seeds": 1}
    return config


def polyloss(config):
    """Poly-1 with the paper's ImageNet weight of 2 against cross-entropy and focal loss.

    The paper trains EfficientNetV2 on ImageNet and detectors on COCO; here a two-layer network sees
    4,000 characters of 62 classes, and the weight is not tuned but taken from the paper. The
    mechanism, that a larger weight makes predictions more confident, is a claim of its own.
    """
    poly1 = "tinker.losses:poly1_cross_entropy"
    config.arms = {
        "focal": {"loss.fn": "tinker.losses:focal"},
        "cross_entropy": {},
        "poly1_eps1": {"loss.fn": poly1, "loss.epsilon": 1.0},
        "poly1": {"loss.fn": poly1, "loss.epsilon": 2.0},
        "poly1_eps5": {"loss.fn": poly1, "loss.epsilon": 5.0},
    }
    config.claims = [
        {
            "metric": "test/accuracy",
            "arm": "poly1",
            "over": "cross_entropy",
            "at_least": 0.0,
            "margin": 0.002,
            "primary": True,
        },
        {"metric": "test/accuracy", "arm": "poly1", "over": "focal", "at_least": 0.0},
        {
            "fn": "slope",
            "metric": "test/p_target",
            "arms": {"cross_entropy": 0.0, "poly1_eps1": 1.0, "poly1": 2.0, "poly1_eps5": 5.0},
            "at_least": 0.0,
            "text": "mean probability of the label rises with epsilon (slope)",
        },
    ]
    config.figure = [
        {"kind": "arms", "metric": "test/accuracy", "label": "test accuracy"},
        {"kind": "arms", "metric": "test/p_target", "label": "mean probability of the label"},
    ]


def comp_sum_losses(config):
    """Cross-entropy among the comp-sum losses: accuracy over tau, at 62 classes.

    The paper trains ResNets on CIFAR and SVHN; here it is a two-layer network on 62 characters. Its
    theory bounds the zero-one regret by that of each of these losses. The bounds are alike up to
    cross-entropy, tau = 1, and weaken with the number of classes above it; below it what a limited
    network cannot reach costs more. So cross-entropy is to be ahead of both sides. The bounds
    themselves, and that they are tight, are tests. The paper's adversarial losses are not here.
    """
    taus = {"tau_0": 0.0, "tau_0_5": 0.5, "tau_1": 1.0, "tau_1_5": 1.5, "tau_2": 2.0}
    fn = "tinker.losses:comp_sum"
    config.arms = {arm: {"loss.fn": fn, "loss.tau": tau} for arm, tau in taus.items()}
    claim = {"metric": "test/accuracy", "arm": "tau_1", "at_least": 0.0}
    config.claims = [
        {**claim, "over": "tau_1_5", "margin": 0.002, "primary": True},
        {**claim, "over": "tau_0"},
        {**claim, "over": "tau_0_5"},
        {**claim, "over": "tau_2"},
    ]
    config.figure = [
        {"kind": "arms", "metric": "test/accuracy", "label": "test accuracy"},
        {"kind": "arms", "metric": "test/p_target", "label": "mean probability of the label"},
    ]
