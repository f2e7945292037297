"""A small vision transformer on scikit-learn's 8x8 digits: the first job to run, in a minute."""

from tinker.train import default_config


def get_config():
    config = default_config()
    config.data = {
        "source": "digits",
        "splits": {"train": "train+validation"},
        "augment": [
            {
                "fn": "tinker.data:random_affine",
                "rotation": 8.0,
                "translation": 0.7,
                "shear": 0.1,
            }
        ],
    }
    config.model = {
        "fn": "tinker.models:ViT",
        "inputs": ("image",),
        "patch": 4,
        "width": 96,
        "depth": 3,
        "heads": 4,
        "classes": 10,
    }
    config.loss = {
        "fn": "tinker.losses:cross_entropy",
        "inputs": ("logits", "label"),
        "label_smoothing": 0.1,
    }
    config.steps = 3000
    config.batch_size = 64
    config.optimizer = {
        "fn": "optax:adamw",
        "weight_decay": 0.05,
        "learning_rate": {
            "fn": "optax:warmup_cosine_decay_schedule",
            "init_value": 0.0,
            "peak_value": 2e-3,
            "warmup_steps": 100,
            "decay_steps": config.steps,
        },
    }
    config.log_every = 100
    config.steps_per_dispatch = 50  # no convolutions: faster so, even on a CPU
    config.eval_every = 500
    config.checkpoint_every = 500
    return config
