"""A small convolutional network on Fashion-MNIST, read where Debian's package put it."""

from tinker.train import default_config


def get_config():
    config = default_config()
    config.data = {"source": "fashion_mnist"}
    config.model = {
        "fn": "tinker.models:CNN",
        "inputs": ("image",),
        "widths": (32, 64),
        "hidden": 128,
        "dropout": 0.2,
        "classes": 10,
    }
    config.steps = 3000
    config.batch_size = 128
    config.optimizer = {
        "fn": "optax:adamw",
        "weight_decay": 0.01,
        "learning_rate": {
            "fn": "optax:cosine_decay_schedule",
            "init_value": 2e-3,
            "decay_steps": config.steps,
        },
    }
    config.eval_every = 1000
    config.eval_splits = ("validation", "test")
    config.checkpoint_every = 500
    config.keep_best = "validation/accuracy"
    return config
