"""Studies of losses over large vocabularies, on the words of the standard library's source."""

from tinker.train.specs import Config


def base():
    """A transformer of width 64 over 16,384 words, which are also its labels."""
    config = Config()
    config.experiment = "large_vocabulary"
    config.loss = {"fn": "tinker.kernels.large_vocabulary.reference:cross_entropy"}
    config.first_loss = {"fn": "tinker.kernels.large_vocabulary.reference:cross_entropy"}
    config.memory = {"tokens": 8192, "width": 512, "vocabularies": (4096, 16384, 65536, 262144)}
    config.filter = 2.0**-12
    config.data = {"length": 64, "vocab": 16384}
    config.model = {
        "fn": "tinker.models:ByteLM",
        "vocab": 16384,
        "length": 64,
        "width": 64,
        "depth": 1,
        "heads": 4,
    }
    config.learning_rate = 1e-2
    config.steps = 100
    config.batch_size = 8
    config.points = 10
    config.eval_size = 8
    config.seeds = 4
    return config


def cce(config):
    """The tiled loss against the loss of logits, with and without the paper's filter of 2**-12.

    The paper trains Gemma 2, of 256,000 tokens, on GPUs: 24 GB for the loss become 1 MB, 28 GB with
    gradients become 1 GB, and the training loss is the same. Here memory is what the compiler plans
    on a CPU, in float32, of the loss and its gradients at up to 262,144 tokens, without their
    outputs; the primary claim asks for a twentieth. A model of one block is trained on words of the
    standard library, numbered by frequency. As the paper filters in fine-tuning, and from scratch
    only the gradient of the hidden vectors, the filter starts halfway; another arm has it from the
    first step, when all words are so unlikely that nothing passes it. It counts a token's label
    apart, and has tiles of 256 words of text by 512 of the vocabulary, sorted by mean logit, which
    takes a copy of the table. Speed is not tested here.
    """
    ours = "tinker.kernels:linear_cross_entropy"
    tiled = {"first_loss.fn": ours, "loss.fn": ours}
    both = {"filter_below": config.filter, "sort": True}
    filtered = {**tiled, **{f"loss.{k}": v for k, v in both.items()}}
    config.arms = {
        "logits": {},
        "tiled": tiled,
        "filtered": filtered,
        "always_filtered": {**filtered, **{f"first_loss.{k}": v for k, v in both.items()}},
    }
    config.claims = [
        {
            "fn": "ratio",
            "metric": "memory_at_most",
            "arm": "tiled",
            "over": "logits",
            "at_most": 0.05,
            "deterministic": True,
            "primary": True,
            "text": "temporary memory of loss and gradients at 262,144 tokens (ratio)",
        },
        {
            "metric": "memory_slope",
            "arm": "tiled",
            "at_most": 0.1,
            "deterministic": True,
            "text": "memory does not grow with the vocabulary (exponent)",
        },
        {
            "metric": "test/nll",
            "arm": "tiled",
            "over": "logits",
            "within": (-0.01, 0.01),
            "text": "the same loss after training, in nats per word",
        },
        {
            "metric": "test/nll",
            "arm": "filtered",
            "over": "logits",
            "within": (-0.01, 0.01),
            "text": "the same with the filter from halfway on",
        },
        {
            "metric": "test/nll",
            "arm": "always_filtered",
            "over": "tiled",
            "at_least": 0.0,
            "text": "the filter from the first step on costs loss",
        },
        {
            "metric": "gradient_error",
            "arm": "filtered",
            "at_most": 0.01,
            "text": "what the filter leaves out of the gradient (share of its norm)",
        },
        {
            "metric": "skipped_sorted",
            "arm": "filtered",
            "at_least": 0.5,
            "text": "share of tiles that it leaves out",
        },
        {
            "metric": "skipped",
            "arm": "filtered",
            "at_least": 0.5,
            "text": "share of tiles that it would, words in order of frequency",
        },
    ]
    config.figure = [
        {
            "kind": "curves",
            "metric": "memory",
            "arms": ["logits", "tiled"],
            "x": "vocabulary",
            "log": "xy",
            "label": "temporary memory (bytes)",
            "xlabel": "vocabulary",
        },
        {
            "kind": "curves",
            "metric": "test/curve",
            "x": "step",
            "label": "test loss (nats per word)",
        },
    ]
