"""Studies of sparse transport plans, on random clouds of the plane."""

from tinker.train.specs import Config


def base():
    """Thirty-two points on either side; the penalty spreads a column over half of the rows."""
    return Config(
        {
            "experiment": "sparse_transport",
            "points": 32,
            "shift": 1.0,
            "k": 0,
            "gamma": 10.0,
            "formulation": "semi_dual",
            "max_iterations": 1000,
            "tolerance": 1e-4,
            "memory_points": 8192,
            "seeds": 20,
        }
    )


def sparse_constrained_ot(config, formulation="semi_dual"):
    """At most 1, 2, 4, 8 or any number of nonzeros in a column: cost, marginals, iterations.

    The paper shows plans between clouds and routes the tokens of a V-MoE on JFT-300M; here are 20
    random problems in the plane and no router. What plans move is compared with the linear
    program's. It can be less, for a plan whose k nonzeros do not meet the marginals moves less mass
    to where it is wanted; the error says how much is missing. The semi-dual is solved from the
    points, so that one arm has 512 of them, with the penalty that spreads a column as far, and the
    memory is that of 8,192, compiled and not run.
    """
    config.formulation = formulation
    arms = {"k1": 1, "k2": 2, "k4": 4, "k8": 8, "quadratic": 0}
    config.arms = {name: {"k": k} for name, k in arms.items()}
    # a point's mass is a sixteenth, and so is what the penalty weighs it with
    config.arms.k4_of_512 = {"k": 4, "points": 512, "gamma": 160.0}
    doublings = {name: float(i) for i, name in enumerate(arms)}
    config.claims = [
        {
            "fn": "slope",
            "metric": "cost_ratio",
            "arms": doublings,
            "at_least": 0.0,
            "primary": True,
            "text": "cost rises from the linear program's to the quadratic one's with k (slope)",
        },
        {
            "metric": "cost_ratio",
            "arm": "k1",
            "within": (0.99, 1.01),
            "text": "with one nonzero the cost is the linear program's (ratio)",
        },
        {
            "metric": "over_k",
            "arm": "k2",
            "at_most": 0.0,
            "deterministic": True,
            "text": "no column has more than 2 nonzeros",
        },
        {
            "metric": "over_k",
            "arm": "k4",
            "at_most": 0.0,
            "deterministic": True,
            "text": "no column has more than 4 nonzeros",
        },
        {
            "metric": "over_k",
            "arm": "k8",
            "at_most": 0.0,
            "deterministic": True,
            "text": "no column has more than 8 nonzeros",
        },
        {
            "metric": "error",
            "arm": "k4",
            "at_most": 0.01,
            "text": "with 4 nonzeros the marginals are met (mass missed)",
        },
        {
            "metric": "error",
            "arm": "k8",
            "at_most": 0.01,
            "text": "with 8 nonzeros the marginals are met (mass missed)",
        },
        {
            "fn": "slope",
            "metric": "iterations",
            "arms": {"k2": 2.0, "k4": 4.0, "k8": 8.0, "quadratic": 32.0},
            "log": True,
            "at_most": 0.0,
            "text": "iterations fall with k, from 2 on (slope of logarithms)",
        },
        {
            "metric": "error",
            "arm": "k4_of_512",
            "over": "k4",
            "at_most": 0.0,
            "text": "of 512 points with 4 nonzeros no more mass is missed than of 32",
        },
        {
            "metric": "memory_ratio",
            "arm": "k4",
            "at_least": 10.0,
            "deterministic": True,
            "text": "at 8,192 points the matrix takes ten times the memory, with 4 nonzeros",
        },
        {
            "metric": "memory_ratio",
            "arm": "quadratic",
            "at_least": 10.0,
            "deterministic": True,
            "text": "at 8,192 points the matrix takes ten times the memory, with any number",
        },
    ]
    config.figure = [
        {
            "kind": "trade",
            "x": "support",
            "y": "cost_ratio",
            "xlabel": "nonzeros in a column",
            "label": "cost over the linear program's",
            "log": "x",
            "arms": list(arms),
        },
        {"kind": "arms", "metric": "error", "label": "mass that the marginals miss"},
        {"kind": "arms", "metric": "iterations", "label": "iterations of L-BFGS", "log": "x"},
    ]
