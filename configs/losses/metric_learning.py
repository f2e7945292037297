"""Studies of metric learning: an encoder of some characters, tried on characters it never saw."""

from tinker.train import default_config


def base():
    """An encoder of 31 of the 62 characters; 21 others are its test, 10 choose the tuning."""
    config = default_config()
    config.experiment = "metric_learning"
    config.data = {
        "source": "glyphs",
        "classes": 62,
        "disjoint_classes": True,
        "size": 2000,
        "validation_size": 600,
        "test_size": 1000,
        "augment": [{"fn": "tinker.data:random_affine", "shear": 0.2}],
    }
    config.model = {
        "fn": "tinker.models:Siamese",
        "inputs": ("image",),
        "network": {"fn": "tinker.models:MLP", "hidden": (256, 128), "classes": None},
        "head": {"fn": "tinker.models:MLP", "hidden": (), "classes": 64},
    }
    config.steps = 150
    config.batch_size = 128
    config.optimizer = {
        "fn": "optax:adamw",
        "weight_decay": 1e-4,
        "learning_rate": {
            "fn": "optax:warmup_cosine_decay_schedule",
            "init_value": 0.0,
            "peak_value": 4e-3,
            "warmup_steps": 15,
            "decay_steps": 150,
        },
    }
    config.metrics = {}
    config.eval_splits = ("test",)
    config.retrieval = {"output": "projections", "false_accept_rate": 0.01, "corruptions": {}}
    config.seeds = 10
    config.tune = {"optimizer.learning_rate.peak_value": [1e-3, 4e-3, 1.6e-2]}
    config.tune_by = {"metric": "validation/map_at_r", "minimize": False, "seeds": 1}
    return config


def nt_xent_am(config):
    """A margin on the cosines of positive views, and both views as anchors, for verification.

    The paper trains SimCLR and MoCo on the voices of VoxCeleb2 and verifies speakers of VoxCeleb1;
    here voices are characters and a view is a random map of one. Training sees no labels; the test
    is whether two images of unseen characters, of any of 22 fonts, are one character. Temperature
    and margin are those of the authors' configuration, 0.03 and 0.1.

    A first run let each arm choose among three temperatures. All took the largest, 0.3, at which a
    margin of 0.1 is a third of a nat, and all were equal, at an equal error rate of 0.26.

    Args:
      config: Of base().
    """
    config.data.views = 2
    config.model.inputs = ("image/0", "image/1")
    config.loss = {"fn": "tinker.losses:supcon", "inputs": ("projections",), "temperature": 0.03}
    config.tune = {}
    one_way = {"loss.fn": "tinker.losses:hard_info_nce", "loss.share": 1.0}
    config.arms = {
        "one_way": {**one_way, "loss.temperature": 0.03},
        "symmetric": {},
        "margin": {"loss.margin": 0.1},
    }

    def claim(arm, over, metric="eer", **terms):
        return {"metric": f"test/{metric}", "arm": arm, "over": over, **terms}

    config.claims = [
        claim(
            "margin",
            "symmetric",
            at_most=0.0,
            margin=0.005,
            primary=True,
            text="equal error rate on unseen characters: a margin of 0.1 over none",
        ),
        claim(
            "symmetric",
            "one_way",
            at_most=0.0,
            text="equal error rate: both views as anchors over the first alone",
        ),
        claim(
            "margin",
            "one_way",
            at_most=0.0,
            text="equal error rate: both changes together",
        ),
        claim(
            "margin",
            "symmetric",
            "same",
            at_least=0.0,
            text="mean cosine within a character: a margin over none",
        ),
    ]
    config.figure = [
        {"kind": "arms", "metric": "test/eer", "label": "equal error rate of verification"},
        {
            "kind": "trade",
            "x": "test/different",
            "y": "test/same",
            "xlabel": "mean cosine of two characters",
            "label": "mean cosine within a character",
        },
    ]


def circle_loss(config):
    """Circle loss against its unweighted form, triplets of hardest pairs, and AM-Softmax.

    The paper trains ResNets on persons, faces, birds, cars and products; here a two-layer encoder
    sees 2,000 images of 31 characters, and is tried on 21 others. The primary claim is that of the
    weights: the same sum over pairs with them and without, at the paper's gamma of 80 and margin of
    0.25. At the start all embeddings are nearly one, where the weights pull positives a fifth as
    hard as they push negatives; without them a network may never come apart.

    Args:
      config: Of base().
    """
    mined = {"positive": "hardest", "negative": "hardest"}
    config.nets = {
        "prototypes": {"fn": "tinker.nn:Prototypes", "count": 31, "dim": 64, "inputs": ()}
    }
    config.loss = _of_pairs("circle_loss", margin=0.25, gamma=80.0)
    softmax = {
        "fn": "tinker.losses:margin_softmax",
        "inputs": ("projections", "prototypes", "label"),
        "additive": 0.35,
        "temperature": 1 / 30,
    }
    triplets = _of_pairs("triplet_loss", margin=0.2)
    triplets["mining"] = {"fn": "tinker.losses:mine", "partial": True, **mined}
    config.arms = {
        "triplet": {"loss": triplets},
        "am_softmax": {"loss": softmax},
        "unified": {"loss": _of_pairs("unified_pair_loss", margin=0.25, gamma=80.0)},
        "circle": {},
    }

    def claim(over, **terms):
        return {"metric": "test/map_at_r", "arm": "circle", "over": over, **terms}

    config.claims = [
        claim(
            "unified",
            at_least=0.0,
            margin=0.005,
            primary=True,
            text="MAP@R on unseen characters: circle loss over the same without its weights",
        ),
        claim("triplet", at_least=0.0, text="MAP@R: circle loss over triplets of hardest pairs"),
        claim("am_softmax", at_least=0.0, text="MAP@R: circle loss over AM-Softmax"),
        {
            "metric": "test/same",
            "arm": "circle",
            "over": "unified",
            "at_least": 0.0,
            "text": "mean cosine within a character: circle loss over the same without weights",
        },
    ]
    config.figure = [
        {"kind": "arms", "metric": "test/map_at_r", "label": "MAP@R on unseen characters"},
        {
            "kind": "trade",
            "x": "test/different",
            "y": "test/same",
            "xlabel": "mean cosine of two characters",
            "label": "mean cosine within a character",
        },
    ]


def adaface(config):
    """A margin that adapts to the quality of an image, where two fifths of them are hard to read.

    The paper trains ResNets on millions of faces, degrades some, and tests on sets of poor and of
    mixed quality; here two fifths of 2,000 images of 31 characters are made coarse, dark and noisy,
    and so is the test, of 21 other characters. Margins are those of the authors' scripts; the
    temperature is 1 / 16 rather than 1 / 64, for there are 31 classes rather than tens of
    thousands, and the running statistics have a decay of 0.9 rather than 0.99, for there are 150
    steps.

    Args:
      config: Of base().
    """
    poor = {"fn": "tinker.experiments.metric_learning:low_quality"}
    config.data.augment = [*config.data.augment, {**poor, "probability": 0.4}]
    config.retrieval.corruptions = {"low_quality": poor}
    config.nets = {
        "prototypes": {"fn": "tinker.nn:Prototypes", "count": 31, "dim": 64, "inputs": ()}
    }
    config.memory = {"fn": "tinker.optim:norm_memory", "output": "projections", "decay": 0.9}
    inputs = {"embeddings": "projections", "prototypes": "prototypes", "labels": "label"}
    plain = {"fn": "tinker.losses:margin_softmax", "inputs": inputs, "temperature": 1 / 16}
    config.loss = {
        "fn": "tinker.losses:adaface",
        "inputs": {**inputs, "statistics": "memory"},
        "temperature": 1 / 16,
        "margin": 0.4,
        "concentration": 0.333,
        "decay": 0.9,
    }
    config.arms = {
        "cosface": {"loss": {**plain, "additive": 0.4}},
        "arcface": {"loss": {**plain, "angle": 0.5}},
        "adaface": {},
    }

    def claim(over, metric="low_quality/tar", **terms):
        terms = {"at_least": 0.0, **terms} if "within" not in terms else terms
        return {"metric": f"test/{metric}", "arm": "adaface", "over": over, **terms}

    config.claims = [
        claim(
            "arcface",
            margin=0.005,
            primary=True,
            text="true accepts at 1 % false, images of low quality: AdaFace over ArcFace",
        ),
        claim("cosface", text="true accepts, images of low quality: AdaFace over CosFace"),
        claim(
            "arcface",
            "tar",
            within=(-0.02, 0.02),
            text="true accepts, images as they are: AdaFace and ArcFace are alike",
        ),
        {
            "metric": "test/low_quality/shorter",
            "arm": "adaface",
            "at_least": 0.5,
            "text": "share of images whose embedding is shorter at low quality",
        },
    ]
    tar = "true accepts at 1 % false"
    config.figure = [
        {"kind": "arms", "metric": "test/low_quality/tar", "label": f"{tar}, low quality"},
        {"kind": "arms", "metric": "test/tar", "label": f"{tar}, as they are"},
        {
            "kind": "arms",
            "metric": "test/low_quality/shorter",
            "label": "share of embeddings shorter at low quality",
        },
    ]


def _of_pairs(loss, **keywords):
    return {
        "fn": "tinker.losses:of_pairs",
        "inputs": ("projections", "label"),
        "loss": {"fn": f"tinker.losses:{loss}", "partial": True, **keywords},
    }
