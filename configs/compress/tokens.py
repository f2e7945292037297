"""Studies of token reduction, on a small vision transformer and characters drawn from fonts."""

from tinker.train import default_config


def base():
    """Four blocks over 49 patches; every seed draws its own characters and trains its own ViT."""
    config = default_config()
    config.data = {
        "source": "glyphs",
        "size": 4000,
        "validation_size": 500,
        "test_size": 1000,
        "rotation": 5.0,
        "shear": 0.05,
        "shift": 1.0,
        "noise": 0.05,
    }
    config.model = {
        "fn": "tinker.models:ViT",
        "inputs": ("image",),
        "patch": 4,
        "depth": 4,
        "width": 48,
        "heads": 3,
        "posemb": "sincos2d",
        "attention_fn": {"fn": "tinker.kernels:flash_attention", "partial": True},
    }
    config.steps = 500
    config.batch_size = 32
    config.optimizer = {
        "fn": "optax:adamw",
        "weight_decay": 0.05,
        "learning_rate": {
            "fn": "optax:warmup_cosine_decay_schedule",
            "init_value": 0.0,
            "peak_value": 2e-3,
            "warmup_steps": 50,
            "decay_steps": 500,
        },
    }
    config.steps_per_dispatch = 50
    config.seeds = 5
    return config


def tome(config, data="glyphs"):
    """Merging 10 tokens in each of four blocks saves nearly half the work: what does it cost?

    The paper takes ViTs trained on ImageNet, of 12 to 32 blocks over 197 tokens and more, and
    measures GPUs. Here the ViT is small, without a class token, and trained for a minute; the
    threshold of a point at 40 to 50 % fewer FLOPs is wider than the 0.2 to 0.3 points that the
    paper loses on large models. Every way to lose tokens removes equally many in each block, and
    acts on the same trained weights; nothing is tuned. The time ratio is of this machine's CPU: it
    says nothing of a GPU or TPU, and the doubled throughput there is not tested here.
    """
    if data != "glyphs":
        config.data = {"source": data}
    here = "tinker.experiments.token_reduction"
    config.experiment = "token_reduction"
    config.reduction = {
        "r": 10,
        "sweep": (0, 4, 7, 10),
        "changes": {
            "token_fn": {"fn": "tinker.compress:merge_tokens", "partial": True},
            "attention_fn": config.model.attention_fn,
        },
    }
    token_fn, scored = "reduction.changes.token_fn", "tinker.compress:prune_tokens"
    config.arms = {
        "merging": {},
        "unweighted_attention": {
            "reduction.changes.attention_fn.fn": f"{here}:unweighted_attention"
        },
        "random_merging": {f"{token_fn}.fn": f"{here}:merge_at_random"},
        "attention_pruning": {
            f"{token_fn}.fn": scored,
            f"{token_fn}.score": {"fn": "tinker.compress:attention_received", "partial": True},
        },
        "random_pruning": {
            f"{token_fn}.fn": scored,
            f"{token_fn}.score": {"fn": f"{here}:random_scores", "partial": True},
        },
    }
    others = ("random_merging", "attention_pruning", "random_pruning", "unweighted_attention")
    config.claims = [
        {
            "metric": "lost",
            "arm": "merging",
            "at_most": 0.01,
            "primary": True,
            "text": "test accuracy lost by merging 10 tokens in each block",
        },
        {
            "metric": "flops",
            "arm": "merging",
            "within": (0.5, 0.6),
            "deterministic": True,
            "text": "FLOPs left, of those without merging",
        },
        *({"metric": "accuracy", "arm": "merging", "over": o, "at_least": 0.0} for o in others),
        {
            "metric": "speedup",
            "arm": "merging",
            "at_least": 1.5,
            "text": "times as fast as unmerged on this CPU (GPU and TPU: not tested here)",
        },
    ]
    config.figure = [
        {
            "kind": "curves",
            "metric": "lost_curve",
            "x": "flops_curve",
            "label": "test accuracy lost",
            "xlabel": "FLOPs, of those without reduction",
        },
        {"kind": "arms", "metric": "lost", "label": "accuracy lost at 10 tokens a block"},
        {"kind": "arms", "metric": "speedup", "label": "times as fast, on this CPU"},
    ]
