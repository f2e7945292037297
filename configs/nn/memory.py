"""Studies of what attention remembers, on corridors with a sign to be recalled."""

from tinker.train.specs import Config


def base():
    """Two blocks of width 32 in corridors of 128 tokens."""
    config = Config()
    config.experiment = "recall"
    config.data = {"length": 128, "cues": 8, "noise": 16, "ask": 0.0625}
    config.train_size = 8000
    config.test_size = 256
    config.model = {
        "fn": "tinker.models:ByteLM",
        "vocab": 25,
        "length": 128,
        "width": 32,
        "depth": 2,
        "heads": 2,
        "attention_fn": {"fn": "tinker.kernels:flash_attention", "partial": True},
        "bias_fn": None,
    }
    config.window = 0
    config.span_loss = 0.0
    config.steps = 500
    config.batch_size = 16
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
    config.seeds = 5
    return config


def expire_span(config):
    """A sign among 128 tokens, recalled in the second half: spans, a window and full attention.

    The paper's corridors are walked by an agent that learns from rewards, and its other tasks reach
    tens of thousands of steps; here the answer is supervised, at every door, and a block sees its
    whole corridor at once. The window remembers more tokens than spans are allowed to. It answers
    by chance, one in eight, where it does not see the sign: at the last door the sign is at least
    64 tokens away, beyond what two blocks of a window of 8 can hand on. Spans start at 26 tokens of
    at most 256, and nothing is tuned.
    """
    config.arms = {
        "full": {},
        "window": {
            "window": 8,
            "model.attention_fn.pattern": {"fn": "tinker.kernels:LocalPattern", "window": 8},
        },
        "expire_span": {
            "model.bias_fn": {
                "fn": "tinker.nn:expire_span",
                "partial": True,
                "max_span": 256,
                "ramp": 4,
            },
            "span_loss": 0.01,
        },
    }
    config.claims = [
        {
            "metric": "accuracy",
            "arm": "expire_span",
            "over": "window",
            "at_least": 0.5,
            "primary": True,
            "text": "accuracy at the last door, expire span over window",
        },
        {
            "metric": "memory_share",
            "arm": "expire_span",
            "at_most": 0.1,
            "text": "tokens that are remembered, of those of full attention",
        },
        {
            "metric": "accuracy",
            "arm": "expire_span",
            "over": "full",
            "at_least": -0.02,
            "text": "accuracy at the last door, expire span over full attention",
        },
        {
            "fn": "tinker.experiments.recall:span_ratio",
            "arm": "expire_span",
            "at_least": 10.0,
            "text": "the mean span of signs over that of other tokens",
        },
    ]
    config.figure = [
        {
            "kind": "curves",
            "metric": "accuracy_curve",
            "x": "distance",
            "xlabel": "tokens since the sign",
            "label": "accuracy at a door",
        },
        {
            "kind": "trade",
            "x": "memory",
            "y": "accuracy",
            "xlabel": "tokens that are remembered",
            "label": "accuracy at the last door",
            "log": "x",
        },
    ]
