"""Studies of spherical losses: what a step costs."""

from tinker.train.specs import Config


def base():
    """An output layer of up to 100,000 classes, and one example at a time."""
    return Config(
        {
            "experiment": "output_layers",
            "layer": "cross_entropy",
            "width": 128,
            "classes": (1000, 3000, 10_000, 30_000, 100_000),
            "repeats": 20,
            "seeds": 5,
            "arms": {},
            "claims": [],
            "figure": [],
        }
    )


def spherical_z_loss(config):
    """The operations and the time of a step, of all scores or of three sums of them.

    The paper trains language models with up to 800,000 words on a GPU, where the Z-loss was forty
    times as fast as cross-entropy by epochs; here it is XLA's count of the operations of a single
    step of the output layer alone, for one example. Time is that of this machine's CPU, and says
    nothing of a GPU or TPU. That the Z-loss is better than cross-entropy by the first many guesses,
    which is the paper's other claim, is not tested.
    """
    config.arms = {name: {"layer": name} for name in ("cross_entropy", "z_loss", "factored_z_loss")}
    config.claims = [
        {
            "fn": "ratio",
            "metric": "flops_at_most",
            "arm": "cross_entropy",
            "over": "factored_z_loss",
            "at_least": 40.0,
            "deterministic": True,
            "primary": True,
            "text": "operations at 100,000 classes, cross-entropy over the Z-loss in factors",
        },
        {
            "metric": "slope",
            "arm": "factored_z_loss",
            "at_most": 0.1,
            "deterministic": True,
            "text": "operations grow as this power of the classes, in factors",
        },
        {
            "metric": "slope",
            "arm": "z_loss",
            "at_least": 0.9,
            "deterministic": True,
            "text": "operations grow as this power of the classes, of all scores",
        },
        {
            "fn": "ratio",
            "metric": "seconds_at_most",
            "arm": "cross_entropy",
            "over": "factored_z_loss",
            "at_least": 40.0,
            "text": "time at 100,000 classes on this CPU, cross-entropy over the factors",
        },
    ]
    panel = {"kind": "curves", "x": "classes", "log": "xy"}
    config.figure = [
        {**panel, "metric": "flops", "label": "operations of a step"},
        {**panel, "metric": "seconds_per_step", "label": "seconds of a step, on this CPU"},
    ]
