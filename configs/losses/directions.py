"""Studies of losses of the direction of a forecast."""

from tinker.train.specs import Config


def base():
    """Seven years of daily returns, and ridge regressions on the last few of them."""
    return Config(
        {
            "experiment": "walk_forward",
            "world": {"drift": 0.3, "persistence": 0.98, "tails": 3.0},
            "criterion": "tinker.losses:directional_loss",
            "lags": (1, 2, 5, 10, 20, 40),
            "penalties": (1.0, 100.0, 10_000.0),
            "train": 500,
            "validation": 125,
            "windows": 10,
            "seeds": 40,
            "arms": {},
            "claims": [],
            "figure": [],
        }
    )


def madl(config):
    """Choosing a model of returns by the directional loss, by absolute and by squared error.

    The paper chooses hyperparameters of LSTMs on Bitcoin and crude oil; here it is the number of
    past returns and the penalty of a ridge regression, on returns that are drawn: a drift of
    three tenths of a standard deviation, up or down for fifty days on average, in noise of heavy
    tails. (A first run had one tenth, of which no model could earn anything, and was inconclusive.)
    As in the paper each model is refitted on a window, chosen on the next and traded on the one
    after, and nothing is deducted for trading. An arm has no drift, where nothing can be earned.
    """
    by = {"madl": "directional_loss", "absolute": "absolute_error", "squared": "squared_error"}
    config.arms = {name: {"criterion": f"tinker.losses:{fn}"} for name, fn in by.items()}
    config.arms["madl_without_drift"] = {"world.drift": 0.0}
    claim = {"metric": "information_ratio", "arm": "madl"}
    config.claims = [
        {
            **claim,
            "over": "squared",
            "at_least": 0.0,
            "margin": 0.1,
            "primary": True,
            "text": "information ratio of a year: chosen by MADL over by squared error",
        },
        {**claim, "over": "absolute", "at_least": 0.0},
        {
            **claim,
            "arm": "madl_without_drift",
            "within": (-0.25, 0.25),
            "text": "information ratio where there is nothing to be forecast",
        },
    ]
    config.figure = [
        {"kind": "arms", "metric": "information_ratio", "label": "information ratio of a year"},
        {"kind": "arms", "metric": "right", "label": "share of days whose sign was forecast"},
    ]
