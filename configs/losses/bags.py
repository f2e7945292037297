"""Studies of learning from bags of examples of which only the mean response is known."""

from tinker.train.specs import Config


def base():
    """Sixty coefficients, and eighty bags of five examples."""
    return Config(
        {
            "experiment": "bags",
            "dimension": 60,
            "bags": 80,
            "size": 5,
            "noise": 1.0,
            "weight": 0.0,
            "seeds": 20,
            "arms": {},
            "claims": [],
            "figure": [],
        }
    )


def aggregate_bag_losses(config):
    """The loss of bags, that of instances, and what is between them, in linear regression.

    This is the paper's own model, Gaussian features and a linear response; the risk is measured
    rather than taken from its formula. The paper's tables and its privacy are not here.
    """
    weights = {"bags": 0.0, "0_1": 0.1, "0_3": 0.3, "0_6": 0.6, "instances": 1.0}
    config.arms = {arm: {"weight": weight} for arm, weight in weights.items()}
    config.claims = [
        {
            "fn": "argmax_inside",
            "metric": "risk",
            "arms": list(weights),
            "minimize": True,
            "at_least": 0.5,
            "primary": True,
            "text": "share of worlds in which the least risk is between the two losses",
        },
        {"metric": "risk", "arm": "0_1", "over": "bags", "at_most": 0.0},
        {"metric": "risk", "arm": "0_1", "over": "instances", "at_most": 0.0},
        {"metric": "squared_bias", "arm": "instances", "over": "bags", "at_least": 0.0},
        {"metric": "variance", "arm": "instances", "over": "bags", "at_most": 0.0},
    ]
    config.figure = [
        {"kind": "arms", "metric": "risk", "label": "risk"},
        {"kind": "trade", "x": "squared_bias", "y": "variance", "label": "variance"},
    ]
