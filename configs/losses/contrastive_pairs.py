"""Studies of contrastive losses of matching pairs: two towers, shapes and their captions."""

import math

from tinker.train import default_config


def base():
    """A perceptron of images and a bag of words, trained to find each other's embeddings."""
    config = default_config()
    config.experiment = "train"
    config.data = {
        "source": "synthetic:captioned_shapes",
        "side": 16,
        "size": 8192,
        "validation_size": 1000,
        "test_size": 1000,
    }
    config.model = _tower("image", {"fn": "tinker.models:MLP", "hidden": (256,), "classes": None})
    words = {"fn": "tinker.models:TextEncoder", "vocab": 23, "length": 5, "width": 64, "depth": 0}
    config.nets = {
        "text": _tower("caption", words, hidden=(64,)),
        "temperature": {"fn": "tinker.nn:LearnedScalar", "initial": 0.1, "positive": True},
    }
    config.loss = {
        "fn": "tinker.losses:info_nce",
        "symmetric": True,
        "inputs": {
            "queries": "projections",
            "keys": "text/projections",
            "temperature": "temperature",
        },
    }
    config.optimizer = {
        "fn": "optax:adam",
        "learning_rate": {
            "fn": "optax:warmup_cosine_decay_schedule",
            "init_value": 0.0,
            "peak_value": 3e-3,
            "warmup_steps": 10,
            "decay_steps": 100,
        },
    }
    both = {"image_to_text": ("projections", "text/projections")}
    both["text_to_image"] = both["image_to_text"][::-1]
    config.metrics = {
        name: {"fn": "tinker.metrics:matching_recall", "inputs": inputs}
        for name, inputs in both.items()
    }
    config.seeds = 10
    return config


def _tower(inputs, network, hidden=(), dim=64):
    head = {"fn": "tinker.models:MLP", "hidden": hidden, "classes": dim}
    return {"fn": "tinker.models:Siamese", "inputs": (inputs,), "network": network, "head": head}


def siglip(config, full=False):
    """The sigmoid loss of pairs against the softmax over a batch, at small and larger batches.

    The paper trains on billions of pairs from the web, with batches from 512 to a million, and
    finds the sigmoid ahead below some 16,000. Here it is 16,384 pairs, two epochs of 8,192 images
    of one of 1,296 captions, in batches of 16 or 256, for as many examples: 1,024 steps or 64.
    Retrieval of held-out captions and images is in place of ImageNet classes and COCO.

    Temperature is learned in all arms, from 0.1 as in the paper. The bias starts at
    -log(batch - 1), where matches and mismatches pull alike, not at the paper's -10, from which it
    could not come back within so few steps; an arm has it start at 0, as in the paper's ablation.
    Noise exchanges two fifths of a batch's captions, the paper's corruption of alignment.

    Args:
      config: Of base().
      full: Transformers, three shapes in an image of 64 pixels, and batches of 512 and 16,384, for
        a TPU or GPU.
    """
    small, large, pairs = 16, 256, 16_384
    if full:
        small, large, pairs = 512, 16_384, 2**27
        config.data.update(objects=3, side=64, size=2**20, test_size=5000)
        image = {"fn": "tinker.models:ViT", "patch": 8, "depth": 12, "width": 384, "heads": 6}
        words = {"vocab": 23, "length": 15, "width": 384, "depth": 6, "heads": 6}
        config.model = _tower("image", {**image, "classes": None}, dim=384)
        config.nets.text = _tower("caption", {"fn": "tinker.models:TextEncoder", **words}, dim=384)
        config.compute_dtype = "bfloat16"
        config.seeds = 3

    def arm(batch, **bias):
        steps = pairs // batch
        changes = {
            "batch_size": batch,
            "steps": steps,
            "log_every": steps // 8,
            "optimizer.learning_rate.warmup_steps": steps // 10,
            "optimizer.learning_rate.decay_steps": steps,
        }
        if bias:
            changes["nets.bias"] = {"fn": "tinker.nn:LearnedScalar", "initial": bias["bias"]}
            changes["loss.fn"] = "tinker.losses:siglip"
            changes["loss.inputs"] = {
                "x": "projections",
                "y": "text/projections",
                "temperature": "temperature",
                "bias": "bias",
            }
        return changes

    noise = {"fn": "tinker.data:shuffle_share", "inputs": ("caption",), "share": 0.4}
    noise = {"data.augment": [noise]}
    balanced = [-math.log(batch - 1) for batch in (small, large)]
    config.arms = {
        "softmax_small": arm(small),
        "sigmoid_small": arm(small, bias=balanced[0]),
        "softmax_large": arm(large),
        "sigmoid_large": arm(large, bias=balanced[1]),
        "softmax_large_noise": arm(large) | noise,
        "sigmoid_large_noise": arm(large, bias=balanced[1]) | noise,
        "sigmoid_large_no_bias": arm(large, bias=0.0),
    }
    config.tune = {"optimizer.learning_rate.peak_value": [1e-3, 3e-3, 1e-2]}
    config.tune_by = {"metric": "validation/image_to_text", "minimize": False, "seeds": 1}

    def claim(arm, over, **terms):
        return {"metric": "test/image_to_text", "arm": arm, "over": over, **terms}

    config.claims = [
        claim(
            "sigmoid_small",
            "softmax_small",
            at_least=0.0,
            margin=0.01,
            primary=True,
            text="captions found first, at the small batch: sigmoid over softmax",
        ),
        claim(
            "sigmoid_large",
            "softmax_large",
            within=(-0.02, 0.02),
            text="at the large batch they are alike",
        ),
        claim(
            "sigmoid_large_noise",
            "softmax_large_noise",
            at_least=0.0,
            text="where two fifths of the captions are wrong: sigmoid over softmax",
        ),
        claim(
            "sigmoid_large",
            "sigmoid_large_no_bias",
            at_least=0.0,
            text="a bias that starts where matches and mismatches pull alike, over one from 0",
        ),
    ]
    panel = {"kind": "arms", "metric": "test/image_to_text"}
    config.figure = [
        {**panel, "label": "images whose caption is found first, of 1,000"},
        {**panel, "metric": "test/text_to_image", "label": "captions whose image is found first"},
    ]


def inf_cl(config, full=False):
    """A contrastive loss in tiles against all its scores: memory, the same training, time.

    The paper measures the memory of GPUs that train CLIP, up to millions of pairs; here it is the
    temporary memory that XLA plans for value and gradient of the loss by itself, from 4,096 to
    65,536 pairs of 512 features, of which those of all scores could not be run. The same training
    is of two small perceptrons, each of which sees its own random view of a digit, in batches of
    1,024 pairs: tiles of 512. Time is that of value and gradient of 2,048 pairs on this machine's
    CPU, and says nothing of a GPU or TPU.

    Args:
      config: Of base().
      full: Batches of 4,096 to 2**20 and a timing at 32,768, for a GPU or TPU.
    """
    config.experiment = "contrastive_memory"
    config.data = {
        "source": "digits",
        "drop_remainder": True,
        "views": 2,
        "augment": [{"fn": "tinker.data:random_affine", "translation": 1.0}],
    }
    network = {"fn": "tinker.models:MLP", "hidden": (64,), "classes": None}
    config.model = _tower("image/0", network, dim=32)
    config.nets = {"other": _tower("image/1", network, dim=32)}
    config.loss = {
        "fn": "tinker.losses:info_nce",
        "inputs": ("projections", "other/projections"),
        "symmetric": True,
        "implementation": "xla",
    }
    config.metrics = {}
    config.update(batch_size=1024, steps=60, log_every=1, eval_splits=())
    config.optimizer.learning_rate.update(peak_value=1e-2, decay_steps=60)
    config.contrast = {
        "batches": tuple(4096 * 2**i for i in range(5)),
        "width": 512,
        "timed": 2048,
    }
    if full:
        config.contrast.update(batches=tuple(4096 * 4**i for i in range(5)), timed=32768)
    config.seeds = 5
    config.arms = {
        "tiles": {},
        "all_scores": {"loss.fn": "tinker.experiments.contrastive_memory:all_scores"},
    }
    config.claims = [
        {
            "metric": "slope",
            "arm": "tiles",
            "at_most": 1.1,
            "deterministic": True,
            "primary": True,
            "text": "memory grows as this power of the batch, in tiles",
        },
        {
            "metric": "slope",
            "arm": "all_scores",
            "at_least": 1.9,
            "deterministic": True,
            "text": "memory grows as this power of the batch, with all scores",
        },
        {
            "fn": "ratio",
            "metric": "largest",
            "arm": "all_scores",
            "over": "tiles",
            "at_least": 100.0,
            "deterministic": True,
            "text": "memory at the largest batch, all scores over tiles",
        },
        {
            "fn": "tinker.experiments.contrastive_memory:largest_gap",
            "metric": "loss",
            "arm": "tiles",
            "over": "all_scores",
            "at_most": 1e-3,
            "deterministic": True,
            "text": "largest difference of the two training curves, nats",
        },
        {
            "metric": "speed",
            "arm": "tiles",
            "at_least": 1 / 1.5,
            "text": "time of all scores over that of tiles, on this CPU",
        },
    ]
    config.figure = [
        {
            "kind": "curves",
            "metric": "mebibytes",
            "x": "batch",
            "log": "xy",
            "xlabel": "pairs in a batch",
            "label": "temporary memory of the loss and its gradients, MiB",
        },
        {"kind": "curves", "metric": "loss", "label": "loss, nats"},
    ]
