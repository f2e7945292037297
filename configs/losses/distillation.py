"""Studies of distillation."""

from tinker.train.specs import Config


def base():
    """Kernel ridge regression on scikit-learn's diabetes, distilled into itself five times."""
    config = Config()
    config.experiment = "ridge_distillation"
    config.data = {"source": "diabetes"}
    config.penalty = 1.0
    config.steps = 6
    config.weight = 0.0
    config.choose = "fixed"
    config.grid = tuple(i / 20 for i in range(21))
    config.seeds = 20
    return config


def sd_ground_truth(config, data="diabetes"):
    """Self-distillation of kernel ridge regression, with and without the truth in its targets.

    The paper's examples are a toy curve and kernels on image sets; its weight for networks, found
    from two students, is not tested here. The kernel is Gaussian, as wide as the median distance.
    Of three penalties, none tuned, one is about right, one too small and one too large, as the test
    error of plain ridge regression says. The closed form is confined to [0, 1] as the grid is, and
    both see the validation error of every step. A first run compared the two at the small penalty,
    where both nearly always choose no truth at all, so that they could not differ.

    Args:
      config: Of base().
      data: "diabetes", or "sine": 40 noisy points of a sine.
    """
    if data == "sine":
        config.data = {"source": "sine", "size": 40, "noise": 0.5}
    closed, small, large = {"choose": "closed_form"}, {"penalty": 0.1}, {"penalty": 30.0}
    config.arms = {
        "closed_form": closed,
        "grid": {"choose": "grid"},
        "no_truth": {},
        "quarter": {"weight": 0.25},
        "long": {"weight": 0.25, "steps": 300},
        "small_no_truth": small,
        "small_closed_form": small | closed,
        "large_no_truth": large,
        "large_closed_form": large | closed,
    }
    config.claims = [
        {
            "fn": "ratio",
            "metric": "test/last",
            "arm": "closed_form",
            "over": "grid",
            "at_most": 1.01,
            "primary": True,
            "text": "test error after five steps, weights in closed form over a grid's",
        },
        {
            "metric": "fits",
            "arm": "closed_form",
            "over": "grid",
            "at_most": -90.0,
            "deterministic": True,
            "text": "systems solved for five weights, closed form over a grid of 21",
        },
        {
            "metric": "limit_gap",
            "arm": "long",
            "at_most": 1e-6,
            "deterministic": True,
            "text": "distance from ridge regression of four times the penalty, after 300 steps",
        },
        {
            "metric": "test/ratio",
            "arm": "small_closed_form",
            "at_most": 1.0,
            "text": "test error after five steps over the first fit's, penalty too small",
        },
        {
            "metric": "test/ratio",
            "arm": "large_no_truth",
            "at_least": 1.0,
            "text": "the same without the truth, penalty too large",
        },
        {
            "metric": "test/last",
            "arm": "large_closed_form",
            "over": "large_no_truth",
            "at_most": 0.0,
            "text": "test error, closed form over no truth, penalty too large",
        },
        {
            "metric": "shrinkage",
            "arm": "no_truth",
            "over": "quarter",
            "at_most": 0.0,
            "text": "what is left of the first fit's norm, no truth over a quarter of it",
        },
    ]
    curves = {"kind": "curves", "metric": "test/mse", "x": "step", "xlabel": "step"}
    config.figure = [
        {
            **curves,
            "arms": ["closed_form", "grid", "no_truth", "quarter"],
            "label": "test error (of the target's variance)",
        },
        {
            **curves,
            "arms": [f"{p}_{m}" for p in ("small", "large") for m in ("no_truth", "closed_form")],
            "label": "test error, penalty too small and too large",
        },
        {"kind": "arms", "metric": "weight", "label": "weight of the truth"},
    ]
    return config
