"""Studies of contrastive losses, on characters drawn from fonts."""

from tinker.train import default_config


def base():
    """An encoder and a projection of two views; a linear classifier then reads the encoder."""
    config = default_config()
    config.experiment = "representation"
    config.data = {
        "source": "glyphs",
        "classes": 10,
        "size": 500,
        "validation_size": 1000,
        "test_size": 2000,
        "views": 2,
        "augment": [{"fn": "tinker.data:random_affine", "shear": 0.2}],
    }
    config.model = {
        "fn": "tinker.models:Siamese",
        "inputs": ("image/0", "image/1"),
        "network": {"fn": "tinker.models:MLP", "hidden": (256, 128), "classes": None},
        "head": {"fn": "tinker.models:MLP", "hidden": (128,), "classes": 128},
    }
    config.steps = 300
    config.batch_size = 128
    config.optimizer = {
        "fn": "optax:adamw",
        "weight_decay": 1e-4,
        "learning_rate": {
            "fn": "optax:warmup_cosine_decay_schedule",
            "init_value": 0.0,
            "peak_value": 4e-3,
            "warmup_steps": 30,
            "decay_steps": 300,
        },
    }
    config.metrics = {}
    config.eval_splits = ("test",)
    config.probe = {
        "params": None,
        "neighbors": 20,
        "l2": 1e-3,
        "corruptions": {
            "noise": {"fn": "tinker.data:gaussian_noise", "std": 0.3},
            "occlusion": {"fn": "tinker.data:random_erasing", "probability": 1.0, "fill": 0.0},
        },
        "assignments": None,
    }
    config.seeds = 10
    config.tune = {"optimizer.learning_rate.peak_value": [2e-3, 4e-3, 8e-3, 1.6e-2]}
    config.tune_by = {"metric": "validation/linear", "minimize": False, "seeds": 1}
    return config


def supcon(config, data="glyphs", full=False):
    """The supervised contrastive loss against cross-entropy, then a linear classifier on both.

    The paper trains ResNets on ImageNet for hundreds of epochs with batches of 6,144; here a
    two-layer encoder sees 500 characters of 10 classes for 77 epochs, 256 images a step: two views
    of 128 for the contrastive losses, one of 256 for cross-entropy, which so sees as many images.
    All are then trained out: a first run, 13 epochs of 3,000 characters of 62 classes, had ended
    while the contrastive loss still fell, and was contradicted by more.

    The paper compares its linear classifier with the network that cross-entropy trained; the
    primary claim is stricter and reads both encoders by the same classifier, and the paper's
    comparison is a claim of its own. Robustness is to pixel noise and to an erased rectangle, in
    place of ImageNet-C.

    Args:
      config: Of base().
      data: "glyphs", or another source of 10 classes such as "fashion_mnist".
      full: The authors' recipe for CIFAR-10 (which `tinker data` prepares), for a TPU or GPU, with
        a ResNet-56 of width 64 in place of their ResNet-50, and without turning the hue.
    """
    config.loss = {
        "fn": "tinker.losses:supcon",
        "inputs": ("projections", "label"),
        "temperature": 0.1,
    }
    if data != "glyphs":
        config.data = {"source": data, "views": 2, "augment": config.data.augment}
        config.update(steps=2000, log_every=200)
        config.optimizer.learning_rate.update(warmup_steps=200, decay_steps=2000)
    if full:
        _cifar10(config)
    config.arms = {
        "cross_entropy": {
            "loss.fn": "tinker.losses:cross_entropy",
            "loss.inputs": ("logits", "label"),
            "model.inputs": ("image",),
            "model.network.classes": 10,
            "model.head": None,
            "data.views": 0,
            "batch_size": 2 * config.batch_size,
            "metrics": {
                "accuracy": {"fn": "tinker.metrics:accuracy", "inputs": ("logits", "label")}
            },
        },
        "simclr": {"loss.inputs": ("projections",)},
        "supcon_in": {"loss.variant": "in"},
        "supcon_out": {},
    }
    config.claims = [
        {
            "metric": "test/linear",
            "arm": "supcon_out",
            "over": "cross_entropy",
            "at_least": 0.0,
            "margin": 0.005,
            "primary": True,
            "text": "linear classifier on the frozen encoder: supcon out over cross-entropy",
        },
        {
            "metric": "test/accuracy",
            "arm": "supcon_out",
            "over": "cross_entropy",
            "at_least": 0.0,
            "text": "supcon out and a linear classifier over the network cross-entropy trained",
        },
        {"metric": "test/linear", "arm": "supcon_out", "over": "supcon_in", "at_least": 0.0},
        {
            "metric": "test/noise/linear",
            "arm": "supcon_out",
            "over": "cross_entropy",
            "at_least": 0.0,
        },
        {
            "metric": "test/occlusion/linear",
            "arm": "supcon_out",
            "over": "cross_entropy",
            "at_least": 0.0,
        },
    ]
    config.figure = [
        {"kind": "arms", "metric": "test/linear", "label": "accuracy of a linear classifier"},
        {"kind": "arms", "metric": "test/knn", "label": "accuracy of 20 nearest neighbours"},
        {"kind": "arms", "metric": "test/noise/linear", "label": "linear, under pixel noise"},
    ]


def align_uniform(config):
    """Alignment of views and uniformity on the sphere, minimised as such, against contrasting them.

    The paper trains some 300 encoders on STL-10 by either loss, for 200 epochs; here it is a
    two-layer encoder and 500 characters of 10 classes, 38 epochs, with the authors' default weights
    and exponents, and a second time with those of their MoCo, three times the alignment and t = 3.
    Their claim is equal or better downstream accuracy, which the primary claim takes as at most a
    point of accuracy less. Either term by itself is tried beside: the paper's argument is that both
    are needed, and that the contrastive loss minimises both. Alignment is that of two random views
    of held-out characters, uniformity that of the characters themselves.

    A first run's grid of learning rates ended at 8e-3, which all but one arm took.

    Args:
      config: Of base().
    """
    _shorter(config)
    config.loss = {"fn": "tinker.losses:supcon", "inputs": ("projections",), "temperature": 0.1}
    align = {"fn": "tinker.losses:view_alignment", "inputs": ("projections",)}
    spread = {"fn": "tinker.losses:uniformity", "inputs": ("projections",)}
    config.metrics = {
        "alignment": {
            "fn": "tinker.metrics:of_views",
            "inputs": ("apply", "key", "image"),
            "metric": {"fn": "tinker.losses:view_alignment", "partial": True},
            "augment": {**config.data.augment[0], "partial": True},
            "output": "projections",
        },
        "uniformity": spread,
    }
    config.arms = {
        "contrastive": {},
        "align_uniform": {"loss": [align, spread]},
        "align_more": {"loss": [{**align, "scale": 3.0}, {**spread, "t": 3.0}]},
        "align_only": {"loss": [align]},
        "uniform_only": {"loss": [spread]},
    }
    config.claims = [
        {
            "metric": "test/linear",
            "arm": "align_uniform",
            "over": "contrastive",
            "at_least": -0.01,
            "primary": True,
            "text": "linear classifier on the frozen encoder: both terms over the contrastive loss",
        },
        {
            "metric": "test/linear",
            "arm": "align_more",
            "over": "contrastive",
            "at_least": -0.01,
            "text": "the same with three times the alignment, and t = 3",
        },
        {"metric": "test/linear", "arm": "align_uniform", "over": "align_only", "at_least": 0.0},
        {"metric": "test/linear", "arm": "align_uniform", "over": "uniform_only", "at_least": 0.0},
        {
            "metric": "test/alignment",
            "arm": "contrastive",
            "over": "uniform_only",
            "at_most": 0.0,
            "text": "the contrastive loss aligns views better than uniformity alone",
        },
        {
            "metric": "test/uniformity",
            "arm": "contrastive",
            "over": "align_only",
            "at_most": 0.0,
            "text": "and spreads better than alignment alone",
        },
    ]
    config.figure = [
        {"kind": "arms", "metric": "test/linear", "label": "accuracy of a linear classifier"},
        {
            "kind": "trade",
            "x": "test/alignment",
            "y": "test/uniformity",
            "xlabel": "squared distance of two views",
            "label": "log mean potential of pairs: lower is more uniform",
        },
    ]


def contrastive_temperature(config):
    """What the temperature of the contrastive loss does to uniformity, tolerance and accuracy.

    The paper trains ResNets on four sets of photographs, with the negatives of a memory bank; here
    it is a two-layer encoder, 500 characters of 10 classes, and the 127 other characters of a
    batch. Tolerance is the mean cosine of characters of one class. As in the paper all is trained
    at one learning rate. The hard loss keeps a tenth of the negatives.

    Two things came out otherwise. At 0.07 embeddings are less uniform than at 0.2: with so few
    images the loss is soon near zero and pushes no more. And the hard loss collapses at 1: at the
    start the nearest of the other characters are nearer than a character's other view, and where
    negatives count alike a loss of such triples falls as everything shrinks. The paper's negatives
    are the nearest of a bank of thousands, and its networks, ResNets, have batch norm.

    Args:
      config: Of base().
    """
    _shorter(config)
    config.loss = {"fn": "tinker.losses:hard_info_nce", "inputs": ("projections",), "share": 1.0}
    config.metrics = {
        "uniformity": {"fn": "tinker.losses:uniformity", "inputs": ("projections",)},
        "tolerance": {
            "fn": "tinker.metrics:class_similarity",
            "inputs": ("projections", "label"),
        },
    }
    config.tune = {}
    temperatures = (0.07, 0.2, 0.5, 1.0)
    plain = [f"temperature_{t:g}" for t in temperatures]
    config.arms = {arm: {"loss.temperature": t} for arm, t in zip(plain, temperatures, strict=True)}
    config.arms["hard_1"] = {"loss.temperature": 1.0, "loss.share": 0.1}
    config.claims = [
        {
            "fn": "spearman",
            "metric": "test/tolerance",
            "arms": plain,
            "at_least": 0.9,
            "primary": True,
            "text": "rank correlation of tolerance with the temperature",
        },
        {
            "fn": "spearman",
            "metric": "test/uniformity",
            "arms": plain,
            "at_least": 0.9,
            "text": "rank correlation of unevenness on the sphere with the temperature",
        },
        {
            "fn": "argmax_inside",
            "metric": "test/linear",
            "arms": plain,
            "at_least": 0.5,
            "text": "share of seeds whose accuracy is best at neither end",
        },
        {
            "metric": "test/linear",
            "arm": "hard_1",
            "over": "temperature_1",
            "at_least": 0.0,
            "text": "hard negatives over all, at a temperature of 1",
        },
        {
            "metric": "test/uniformity",
            "arm": "hard_1",
            "over": "temperature_1",
            "at_most": 0.0,
            "text": "hard negatives spread embeddings at a temperature of 1",
        },
    ]
    config.figure = [
        {
            "kind": "trade",
            "x": "test/uniformity",
            "y": "test/tolerance",
            "groups": {"all negatives": plain, "the hardest tenth": ["hard_1"]},
            "xlabel": "log mean potential of pairs: lower is more uniform",
            "label": "mean cosine of a class",
        },
        {"kind": "arms", "metric": "test/linear", "label": "accuracy of a linear classifier"},
    ]


def ssl_duality(config):
    """A contrast of samples against one of dimensions, which differ by lengths alone.

    The paper goes from SimCLR to VICReg and back in steps on ImageNet, and finds the same accuracy
    once each is tuned; here the two ends of its theorem are trained as they stand, beside the
    alignment of views, by a two-layer encoder on 500 characters of 10 classes. Each has the
    lengths that its family is given, rows of length 1 for samples and columns of one length for
    dimensions; or both, where the theorem says that the two are one. As the paper tunes each, each
    arm has its own weight, of the same four. Of 128 images and as many dimensions the two sums run
    over equally many pairs. Columns are not centred, as in the theorem; VICReg's are.

    Args:
      config: Of base().
    """
    _shorter(config)
    align = {"fn": "tinker.losses:view_alignment", "inputs": ("projections",)}

    def against(name, normalize):
        contrast = {"fn": f"tinker.losses:{name}_contrast", "inputs": ("projections",)}
        return {"loss": [align, {**contrast, "normalize": normalize, "scale": 1.0}]}

    config.loss = against("sample", "rows")["loss"]
    config.arms = {
        "samples": {},
        "dimensions": against("dimension", "columns"),
        "samples_both": against("sample", "both"),
        "dimensions_both": against("dimension", "both"),
    }
    config.tune = {"loss.1.scale": [1e-5, 3e-5, 1e-4, 3e-4]}

    config.claims = [
        {
            "metric": "test/linear",
            "arm": "dimensions",
            "over": "samples",
            "within": (-0.015, 0.015),
            "primary": True,
            "text": "linear classifier on the frozen encoder: dimensions contrasted, or samples",
        },
        {
            "metric": "test/linear",
            "arm": "dimensions_both",
            "over": "samples_both",
            "within": (-0.015, 0.015),
            "text": "the same where rows and columns have given lengths",
        },
    ]
    config.figure = [
        {"kind": "arms", "metric": "test/linear", "label": "accuracy of a linear classifier"},
        {"kind": "arms", "metric": "test/knn", "label": "accuracy of 20 nearest neighbours"},
    ]


def _shorter(config):
    config.steps = 150
    config.optimizer.learning_rate.update(warmup_steps=15, decay_steps=150)
    config.data.test_size = 1000
    config.probe.corruptions = {}
    config.tune = {"optimizer.learning_rate.peak_value": [4e-3, 8e-3, 1.6e-2]}


def _cifar10(config):
    crop = {"fn": "tinker.data:random_resized_crop", "area": (0.2, 1.0)}
    augment = [crop, {"fn": "tinker.data:random_flip"}, {"fn": "tinker.data:color_jitter"}]
    config.data = {"source": "tfds:cifar10", "in_memory": True, "views": 2, "augment": augment}
    config.model.network = {
        "fn": "tinker.models:ResNet",
        "depth": 56,
        "width": 64,
        "classes": None,
    }
    config.model.head.hidden = (256,)
    config.batch_size = 1024
    config.steps = 1000 * 50_000 // 1024
    config.compute_dtype = "bfloat16"
    config.optimizer = [
        {"fn": "optax:add_decayed_weights", "weight_decay": 1e-4},
        {
            "fn": "optax:sgd",
            "momentum": 0.9,
            "learning_rate": {
                "fn": "optax:warmup_cosine_decay_schedule",
                "init_value": 0.01,
                "peak_value": 0.5,
                "warmup_steps": config.steps // 100,
                "decay_steps": config.steps,
            },
        },
    ]
    config.seeds = 3
    config.tune = {"optimizer.1.learning_rate.peak_value": [0.25, 0.5, 1.0]}
