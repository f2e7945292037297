"""Studies of losses that align labels with frames, on speech-like sequences."""

from tinker.train.specs import Config


def base():
    """Sixteen tokens of five to nine frames with pauses between, read by three convolutions."""
    config = Config()
    config.experiment = "frame_labels"
    config.data = {
        "frames": 64,
        "tokens": 16,
        "most_labels": 6,
        "duration": (5, 9),
        "pause": (0, 4),
        "dimension": 12,
        "noise": 0.6,
    }
    config.train_size = 2000
    config.eval_size = 200
    config.eval_splits = ("test",)
    config.model = {
        "fn": "tinker.models:FrameEncoder",
        "classes": 17,
        "width": 32,
        "kernel": 5,
        "depth": 3,
        "ahead": None,
    }
    config.steps = 600
    config.points = 12
    config.batch_size = 16
    config.optimizer = {"fn": "optax:adam"}
    config.learning_rate = 3e-3
    config.prior_scale = 0.0
    config.delay_penalty = 0.0
    config.delay_from = 0.0
    config.seeds = 10
    return config


def ctc_peaky(config):
    """CTC against CTC with a label prior: whether outputs are peaks among blanks, or segments.

    The paper proves it of one example, which the tests hold, and trains on Switchboard; here 2,000
    sequences of generated frames have known segments. The network is feed-forward, as in the proof,
    over 13 frames, and starts from uniform scores. The prior is of the batch rather than a running
    mean. The paper's CTC networks give nearly all frames to the blank; the claim here is
    of three in five, where a fifth of the frames are pauses.
    """
    config.arms = {
        "ctc": {},
        "half_prior": {"prior_scale": 0.5},
        "prior": {"prior_scale": 1.0},
    }
    config.tune = {"learning_rate": [3e-3, 6e-3, 1.2e-2]}
    config.tune_by = {"metric": "validation/token_error", "seeds": 1}
    config.claims = [
        {
            "metric": "test/frame_error",
            "arm": "prior",
            "over": "ctc",
            "at_most": 0.0,
            "margin": 0.02,
            "primary": True,
            "text": "share of frames aligned to something else, prior over CTC",
        },
        {
            "metric": "test/blank",
            "arm": "ctc",
            "at_least": 0.6,
            "text": "mean probability that CTC gives the blank, where a fifth of frames are pauses",
        },
        {
            "metric": "test/blank",
            "arm": "prior",
            "over": "ctc",
            "at_most": -0.2,
            "text": "mean probability of the blank, prior over CTC",
        },
        {
            "fn": "steps_to",
            "metric": "token_error_curve",
            "arm": "prior",
            "over": "ctc",
            "at_most": 1.0,
            "text": "steps that the prior needs to CTC's last token error, as a share",
        },
    ]
    config.figure = [
        {"kind": "curves", "metric": "blank_curve", "x": "step", "label": "probability of blank"},
        {
            "kind": "curves",
            "metric": "frame_error_curve",
            "x": "step",
            "label": "share of frames aligned to something else",
        },
        {"kind": "curves", "metric": "token_error_curve", "x": "step", "label": "token error"},
    ]


def delay_ctc(config):
    """A price per frame on late labels, where what a token is shows only in its second half.

    The paper trains streaming Conformers on LibriSpeech with prices up to a few hundredths per
    frame of 40 ms; here convolutions that see no frame ahead read generated frames, of which 5 to 9
    make a token, so prices are larger, and come in after half of the steps: in first runs, with a
    price of 0.03 from the first step on, and later with one of 1, and of 0.2 for one seed in ten,
    all labels went to the first frames and none was recognised. Delay is from the true start of a
    token to its first frame in the best alignment. Nothing is tuned. The paper's joint training
    with a transducer is not here.
    """
    config.model.ahead = 0
    config.delay_from = 0.5
    config.learning_rate = 6e-3
    config.arms = {
        "none": {},
        "0.03": {"delay_penalty": 0.03},
        "0.06": {"delay_penalty": 0.06},
        "0.1": {"delay_penalty": 0.1},
    }
    prices = {"none": 0.0, "0.03": 0.03, "0.06": 0.06, "0.1": 0.1}
    config.claims = [
        {
            "fn": "slope",
            "metric": "test/delay",
            "arms": prices,
            "at_most": 0.0,
            "primary": True,
            "text": "delay falls with the price (slope, frames per nat and frame)",
        },
        {
            "fn": "slope",
            "metric": "test/token_error",
            "arms": prices,
            "at_least": 0.0,
            "text": "token error rises with it (slope)",
        },
        {
            "metric": "test/token_error",
            "arm": "0.03",
            "over": "none",
            "at_most": 0.01,
            "text": "token error at a small price, over none",
        },
    ]
    config.figure = [
        {
            "kind": "trade",
            "x": "test/delay",
            "y": "test/token_error",
            "xlabel": "frames from a token's start to its first label",
            "label": "edits per label",
        },
        {"kind": "arms", "metric": "test/delay", "label": "delay in frames, by the price"},
        {"kind": "arms", "metric": "test/length", "label": "frames of a token in the alignment"},
    ]


def _transducers(config):
    """Transducers in place of CTC."""
    config.experiment = "transduction"
    config.steps = 400
    config.seeds = 5
    config.model = {
        "fn": "tinker.models:Transducer",
        "classes": 17,
        "width": 32,
        "kernel": 5,
        "depth": 3,
        "context": 2,
        "durations": 0,
        "window": 0,
    }
    for name in ("points", "prior_scale", "delay_penalty", "delay_from"):
        del config[name]
    config.update(durations=(), sigma=0.0, memory=None)


def pruned_rnnt(config):
    """The transducer loss in windows of three of seven labels against that of all.

    The paper trains Conformers on LibriSpeech, with windows of five labels of 500 classes; here
    convolutions read generated frames, of which sequences say 2 to 6 tokens of 16. Memory is that
    of a compiled training step, at the sizes of the paper: 500 frames, 100 labels, 500 classes,
    windows of five. It is of a batch of one and of a CPU; no time is claimed.
    """
    _transducers(config)
    config.memory = {"frames": 500, "labels": 100, "classes": 500, "width": 64, "window": 5}
    config.arms = {"full": {}, "pruned": {"model.window": 3}}
    config.tune = {"learning_rate": [3e-3, 6e-3, 1.2e-2]}
    config.tune_by = {"metric": "validation/token_error", "seeds": 1}
    config.claims = [
        {
            "fn": "ratio",
            "metric": "peak_megabytes",
            "arm": "full",
            "over": "pruned",
            "at_least": 5.0,
            "deterministic": True,
            "primary": True,
            "text": "memory of a training step, full over pruned",
        },
        {
            "metric": "test/token_error",
            "arm": "pruned",
            "over": "full",
            "at_most": 0.01,
            "text": "edits per label, pruned over full",
        },
    ]
    config.figure = [
        {
            "kind": "arms",
            "metric": "peak_megabytes",
            "label": "memory of a training step, in 2^20 bytes",
            "log": "x",
        },
        {"kind": "arms", "metric": "test/token_error", "label": "edits per label"},
    ]


def tdt(config):
    """Transducers that say how many frames to go on against one that goes on by one.

    The paper trains Conformers of 0.1 billion parameters on speech and measures seconds; here
    convolutions read generated frames, and what is counted is how often the joint network is asked,
    per frame: at least once for RNN-T. Durations are up to 4, as the paper's, and up to 8; sigma is
    the authors'. They also take the RNN-T loss for a tenth of the batches, for decoding in batches,
    which here needs no such care.
    """
    _transducers(config)
    config.arms = {
        "rnnt": {},
        "tdt_4": {"durations": (0, 1, 2, 3, 4), "model.durations": 5, "sigma": 0.05},
        "tdt_8": {"durations": (0, 1, 2, 4, 6, 8), "model.durations": 6, "sigma": 0.05},
    }
    config.tune = {"learning_rate": [3e-3, 6e-3, 1.2e-2]}
    config.tune_by = {"metric": "validation/token_error", "seeds": 1}
    config.claims = [
        {
            "fn": "ratio",
            "metric": "test/evaluations",
            "arm": "rnnt",
            "over": "tdt_4",
            "at_least": 2.0,
            "primary": True,
            "text": "evaluations of the joint network in decoding, RNN-T over TDT of up to 4",
        },
        {
            "metric": "test/token_error",
            "arm": "tdt_4",
            "over": "rnnt",
            "at_most": 0.0,
            "margin": 0.01,
            "text": "edits per label, TDT of up to 4 over RNN-T",
        },
        {
            "metric": "test/evaluations",
            "arm": "tdt_8",
            "over": "tdt_4",
            "at_most": 0.0,
            "text": "evaluations per frame, TDT of up to 8 over up to 4",
        },
    ]
    config.figure = [
        {
            "kind": "trade",
            "x": "test/evaluations",
            "y": "test/token_error",
            "xlabel": "evaluations of the joint network per frame",
            "label": "edits per label",
        },
        {"kind": "arms", "metric": "test/delay", "label": "frames from a token's start"},
    ]
