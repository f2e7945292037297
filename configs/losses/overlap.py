"""Studies of losses of overlap, over the predictions themselves."""

from tinker.train.specs import Config


def base():
    """Sixty-four sets of soft places, and predictions that no network holds back."""
    pair = {"inputs": ("predictions", "targets")}
    return Config(
        {
            "experiment": "fit",
            "world": {"fn": "tinker.experiments.fit:soft_sets", "sets": 64, "places": 64},
            "like": "targets",
            "link": {"fn": "jax:nn.sigmoid"},
            "loss": {"fn": "tinker.losses:jaccard_metric", **pair},
            "metrics": {
                "distance": {"fn": "tinker.losses:absolute_error", **pair},
                "soft_jaccard": {"fn": "tinker.losses:soft_jaccard", **pair},
            },
            "learning_rate": 0.1,
            "steps": 2000,
            "seeds": 10,
            "arms": {},
            "claims": [],
            "figure": [],
        }
    )


def jml(config):
    """Where losses of overlap end if labels are soft: at the labels, or at a hard set.

    This is the paper's reason for its losses, not its headline: there, label smoothing and
    distillation, whose labels are soft, gain some points of segmentation on Cityscapes, VOC and
    DeepGlobe, with networks and an added cross-entropy. Here every prediction is free. Soft labels
    are drawn, not a teacher's.
    """
    jaccard = "tinker.losses:jaccard_metric"
    config.arms = {
        "soft_jaccard": {"loss.fn": "tinker.losses:soft_jaccard"},
        "jaccard_metric_1": {},
        "jaccard_metric_2": {"loss.fn": jaccard, "loss.intersection": "product"},
        "dice_semimetric": {"loss.fn": "tinker.losses:dice_semimetric"},
    }
    config.claims = [
        {
            "metric": "distance",
            "arm": "jaccard_metric_1",
            "at_most": 0.01,
            "primary": True,
            "text": "mean distance to the soft label, of the Jaccard metric loss",
        },
        {"metric": "distance", "arm": "jaccard_metric_2", "at_most": 0.01},
        {"metric": "distance", "arm": "dice_semimetric", "at_most": 0.01},
        {
            "metric": "distance",
            "arm": "soft_jaccard",
            "at_least": 0.1,
            "text": "mean distance to the soft label, of the soft Jaccard loss",
        },
        {
            "metric": "soft_jaccard",
            "arm": "soft_jaccard",
            "over": "jaccard_metric_1",
            "at_most": 0.0,
            "text": "by its own measure the soft Jaccard loss is right to end elsewhere",
        },
    ]
    config.figure = [
        {"kind": "arms", "metric": "distance", "label": "mean distance to the soft label"},
        {"kind": "curves", "metric": "curve", "x": "step", "log": "x", "label": "loss"},
    ]
