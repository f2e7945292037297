"""Studies of sparse attention, on pixels of characters drawn from fonts."""

from tinker.train.specs import Config


def base():
    """Two blocks of width 64 over 196 pixels of 8 levels; every seed draws its own characters."""
    config = Config()
    config.experiment = "pixel_models"
    config.data = {"side": 14, "levels": 8, "noise": 0.0}
    config.train_size = 4000
    config.eval_size = 200
    config.eval_splits = ("test",)
    config.model = {
        "fn": "tinker.models:ByteLM",
        "vocab": 9,
        "length": 196,
        "width": 64,
        "depth": 2,
        "heads": 4,
        "attention_fn": {"fn": "tinker.kernels:flash_attention", "partial": True},
    }
    config.steps = 250
    config.batch_size = 8
    config.optimizer = {
        "fn": "optax:adamw",
        "weight_decay": 0.0,
        "learning_rate": {
            "fn": "optax:warmup_cosine_decay_schedule",
            "init_value": 0.0,
            "peak_value": 6e-3,
            "warmup_steps": config.steps // 10,
            "decay_steps": config.steps,
        },
    }
    config.seeds = 4
    return config


def sparse_transformer(config):
    """Strided attention on images of 14 x 14 pixels, at a fifth of the scores of dense attention.

    The paper trains up to 128 layers on up to 12,000 tokens, of images, text and sound, and reports
    densities as good as dense attention's or better. Here two blocks of a small model with rotary
    positions, where the paper embeds row and column, see 2,000 characters of 196 pixels. The stride
    is their width, both sets of keys are in one softmax, and local attention has a window with at
    least as many scores. All arms have the same learning rate, which was not tuned. That the fixed
    pattern is the better one on text is not tested here, nor is any time.
    """
    sparse = {"model.attention_fn.stride": 14}
    config.arms = {
        "dense": {},
        "strided": {"model.attention_fn.fn": "tinker.nn:strided_attention", **sparse},
        "fixed": {
            "model.attention_fn.fn": "tinker.nn:fixed_attention",
            "model.attention_fn.summary": 1,
            **sparse,
        },
        "local": {
            "model.attention_fn.pattern": {"fn": "tinker.kernels:LocalPattern", "window": 22}
        },
    }
    config.claims = [
        {
            "fn": "ratio",
            "metric": "test/nll",
            "arm": "strided",
            "over": "dense",
            "at_most": 1.02,
            "primary": True,
            "text": "test loss of strided attention, over that of dense attention",
        },
        {
            "metric": "scores",
            "arm": "strided",
            "at_most": 28.0,
            "deterministic": True,
            "text": "scores per pixel and head, at most twice the root of 196",
        },
        {
            "metric": "unjoined",
            "arm": "strided",
            "at_most": 0.0,
            "deterministic": True,
            "text": "pairs of pixels that two blocks do not join",
        },
        {"metric": "test/nll", "arm": "strided", "over": "local", "at_most": 0.0},
        {"metric": "test/nll", "arm": "strided", "over": "fixed", "at_most": 0.0},
    ]
    config.figure = [
        {"kind": "arms", "metric": "test/nll", "label": "test loss (nats per pixel)"},
        {
            "kind": "trade",
            "x": "score_share",
            "y": "test/nll",
            "xlabel": "scores, of those of dense attention",
            "label": "test loss (nats per pixel)",
        },
    ]
