"""Studies of losses of boxes, by the descent of a box towards its target."""

from tinker.train.specs import Config


def base():
    """The simulation of Distance-IoU: anchors all around seven targets, 200 iterations."""
    config = Config()
    config.experiment = "box_regression"
    config.loss = {"fn": "tinker.losses:box_loss", "kind": "iou", "partial": True}
    config.points = 200
    config.radius = 3.0
    config.rates = ((0.1, 160), (0.01, 20), (0.001, 20))
    config.record_every = 10
    config.seeds = 10
    return config


def diou(config, full=False):
    """Boxes follow four losses: which arrive, and how soon.

    It is the paper's simulation, with its targets, anchors, step sizes and distribution of places,
    of which there are 200 for each seed rather than 5,000 in all. Boxes follow the exact gradient,
    which the authors' scripts (Zzh-tju/DIoU) do not: written by hand, they let a width move twice
    as far as its edges do, mix the enclosing box's horizontal and vertical terms, and give boxes
    that are apart an intersection, the product of their gaps, in GIoU's union. The last has an arm
    of its own. Detection on VOC and COCO is not tested here.

    Args:
      config: Of base().
      full: All 1,715,000 cases, in 3 seeds; some minutes.
    """
    if full:
        config.update(points=5000, seeds=3)
    config.arms = {kind: {"loss.kind": kind} for kind in ("iou", "giou", "diou", "ciou")}
    scripted = "tinker.experiments.box_regression:unclipped_giou_loss"
    config.arms["giou_unclipped"] = {"loss.fn": scripted, "loss.partial": True}
    config.claims = [
        {
            "fn": "ratio",
            "metric": "mean_error",
            "arm": "diou",
            "over": "giou",
            "at_most": 1.0,
            "primary": True,
            "text": "mean error over all iterations, DIoU over GIoU",
        },
        {
            "fn": "ratio",
            "metric": "final_error",
            "arm": "diou",
            "over": "giou",
            "at_most": 1.0,
            "text": "final error, DIoU over GIoU",
        },
        {
            "fn": "ratio",
            "metric": "mean_error",
            "arm": "diou",
            "over": "giou_unclipped",
            "at_most": 1.0,
            "text": "mean error over all iterations, DIoU over GIoU of the authors' scripts",
        },
        {
            "fn": "ratio",
            "metric": "mean_error",
            "arm": "giou",
            "over": "iou",
            "at_most": 1.0,
            "text": "mean error over all iterations, GIoU over IoU",
        },
        {
            "fn": "ratio",
            "metric": "final_error",
            "arm": "ciou",
            "over": "diou",
            "at_most": 1.0,
            "text": "final error, CIoU over DIoU",
        },
        {
            "metric": "apart",
            "arm": "diou",
            "at_most": 0.001,
            "text": "share of cases that end without overlap, DIoU",
        },
    ]
    config.figure = [
        {
            "kind": "curves",
            "metric": "error",
            "x": "iteration",
            "xlabel": "iteration",
            "label": "error of a box, on average over all cases",
            "log": "y",
        },
        {"kind": "arms", "metric": "final_error", "label": "error after 200 iterations"},
        {"kind": "arms", "metric": "apart", "label": "share that end without overlap"},
    ]
    return config
