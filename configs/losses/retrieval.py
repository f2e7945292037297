"""Studies of losses of queries and items: one encoder of both, all items ranked for each query."""

from tinker.train import default_config


def base():
    """A bag of words embeds queries and 500 items; each query looks for one to ten of them."""
    config = default_config()
    config.experiment = "retrieval"
    world = {"topics": 25, "words": 400, "name_length": 3}
    items = {"source": "synthetic:tinker.experiments.retrieval:topic_items", **world}
    config.data = {
        "source": "synthetic:tinker.experiments.retrieval:topic_queries",
        **world,
        "items": 500,
        "length": 16,
        "size": 4096,
        "validation_size": 500,
        "test_size": 1000,
        "streams": {
            "items": {**items, "size": 500, "validation_size": 0, "test_size": 0, "batch_size": 500}
        },
    }
    config.model = {
        "fn": "tinker.models:Siamese",
        "inputs": ("tokens",),
        "network": {
            "fn": "tinker.models:TextEncoder",
            "vocab": 800,
            "length": 16,
            "width": 64,
            "depth": 0,
        },
        "head": {"fn": "tinker.models:MLP", "hidden": (128,), "classes": 64},
    }
    config.loss = _against_items("tinker.losses:multi_positive_cross_entropy")
    config.steps = 256
    config.batch_size = 128
    config.optimizer = {
        "fn": "optax:adam",
        "learning_rate": {
            "fn": "optax:warmup_cosine_decay_schedule",
            "init_value": 0.0,
            "peak_value": 1e-2,
            "warmup_steps": 25,
            "decay_steps": 256,
        },
    }
    config.metrics = {}
    config.eval_splits = ("test",)
    config.retrieval = {"output": "projections"}
    config.seeds = 10
    config.tune = {"optimizer.learning_rate.peak_value": [1e-3, 3e-3, 1e-2]}
    config.tune_by = {"metric": "validation/precision_at_5", "minimize": False, "seeds": 1}
    return config


def dexml(config):
    """Softmaxes in which a query's positives do not compete, against one in which they do.

    The paper fine-tunes DistilBERT on sets of up to 1.3 million labels, all of them negatives; here
    a bag of words, the same for queries and items, learns a made-up language of 400 words from
    4,096 queries, eight times over, with all 500 items as negatives. As in the paper the encoder's
    cosines are divided by 0.05. All losses see all positives of a query and are means over them,
    where the authors' code draws one, or k for the top-k, and sums those of the plain softmax. One
    versus all has no bias, as in that code, and 497 negatives for 3 positives; it learns nothing.

    Args:
      config: Of base().
    """
    top = _against_items("tinker.losses:soft_top_k_loss", k=5, alpha=2.0)
    config.arms = {
        "one_versus_all": {"loss": _against_items("optax:sigmoid_binary_cross_entropy")},
        "softmax": {},
        "decoupled": {"loss.loss.decoupled": True},
        "soft_top_5": {"loss": top},
    }

    def claim(arm, over, metric="precision_at_5", **terms):
        return {"metric": f"test/{metric}", "arm": arm, "over": over, "at_least": 0.0, **terms}

    config.claims = [
        claim(
            "decoupled",
            "softmax",
            margin=0.005,
            primary=True,
            text="precision of the first five items: positives decoupled over competing",
        ),
        claim(
            "decoupled",
            "softmax",
            "precision_at_1",
            text="precision of the first item: decoupled over competing",
        ),
        claim(
            "soft_top_5",
            "decoupled",
            text="precision of the first five: smooth top 5 over decoupled softmax",
        ),
        claim(
            "decoupled",
            "one_versus_all",
            text="precision of the first five: decoupled softmax over one versus all",
        ),
    ]
    config.figure = [
        {"kind": "arms", "metric": "test/precision_at_5", "label": "precision of the first five"},
        {"kind": "arms", "metric": "test/precision_at_1", "label": "precision of the first"},
        {"kind": "arms", "metric": "test/gap", "label": "best less worst positive, cosine"},
    ]


def _against_items(loss, **keywords):
    return {
        "fn": "tinker.experiments.retrieval:against_items",
        "inputs": ("projections", "apply", "items/tokens", "relevant", "items/place"),
        "loss": {"fn": loss, "partial": True, **keywords},
        "temperature": 0.05,
    }
