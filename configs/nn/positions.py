"""Studies of positions, on a byte-level language model that reads past its training length."""

from tinker.train.specs import Config


def base():
    """Two blocks of width 64 on 128 bytes of the standard library's source, held out by file."""
    config = Config()
    config.experiment = "length_extrapolation"
    config.data = {"source": "text:stdlib", "length": 128}
    config.model = {
        "fn": "tinker.models:ByteLM",
        "length": 1024,
        "width": 64,
        "depth": 2,
        "heads": 4,
        "attention_fn": {"fn": "tinker.kernels:flash_attention", "partial": True},
        "position_fn": None,
    }
    config.steps = 200
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
    config.lengths = (128, 256, 512, 1024)
    config.eval_splits = ("test",)
    config.eval_size = 16
    config.seeds = 4
    return config


def cable(config):
    """Trained on 128 bytes and read at up to 1,024: context-aware biases, ALiBi and RoPE.

    The paper trains GPT-2 of 44M to 334M parameters on FineWeb-Edu and WikiText-103, at 512 and
    1,024 tokens, and finds CABLE's perplexity beyond those lengths lower than other encodings'.
    Here a model of 0.1M parameters sees 0.2M bytes of Python, and all lengths are measured on the
    same bytes. The primary claim takes ALiBi, which CABLE generalises, as the one to beat. All
    arms have the same learning rate, which was not tuned, and scores divided by the square root of
    the head's width, which the authors' code leaves out.
    """
    rope = {"model.position_fn": {"fn": "tinker.nn:rope", "partial": True}}
    cable = {"model.bias_fn": {"fn": "tinker.nn:cable", "partial": True}}
    config.arms = {
        "rope": rope,
        "alibi": {"model.bias_fn": {"fn": "tinker.nn:alibi", "partial": True}},
        "cable": cable,
        "rope_and_cable": rope | cable,
    }
    lower = {"at_most": 0.0, "margin": 0.01}
    config.claims = [
        {"metric": "test/nll_1024", "arm": "cable", "over": "alibi", "primary": True, **lower},
        {"metric": "test/nll_1024", "arm": "cable", "over": "rope", **lower},
        {"metric": "test/nll_1024", "arm": "rope_and_cable", "over": "rope", **lower},
        {"metric": "test/nll_128", "arm": "cable", "over": "alibi", **lower},
        {
            "metric": "test/gain",
            "arm": "cable",
            "at_least": 0.0,
            "margin": 0.01,
            "text": "what 1,024 bytes of context gain CABLE over 128 (nats per byte)",
        },
    ]
    config.figure = [
        {
            "kind": "curves",
            "metric": "test/nll",
            "x": "length",
            "xlabel": "bytes read at once (trained on 128)",
            "label": "test loss (nats per byte)",
            "log": "x",
        },
        {
            "kind": "curves",
            "metric": "test/nll",
            "x": "length",
            "arms": ["alibi", "cable"],
            "xlabel": "bytes read at once (trained on 128)",
            "label": "the same",
            "log": "x",
        },
    ]
