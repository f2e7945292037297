"""Studies of losses over labels that depend on one another."""

from tinker.train.specs import Config


def base():
    """Sentences of 16 words with names of three kinds, tagged by a small bidirectional LSTM."""
    config = Config()
    config.experiment = "tagging"
    config.data = {"length": 16, "spelling": 6, "words": 60, "names": 40}
    config.train_size = 600
    config.eval_size = 500
    config.eval_splits = ("test",)
    config.model = {
        "fn": "tinker.models:BiLSTMTagger",
        "vocabulary": 1 + 60 + 3 * 40,
        "classes": 13,
        "width": 32,
        "word_width": 24,
        "letters": 26,
        "letter_width": 12,
        "dropout": 0.5,
        "crf": True,
    }
    config.steps = 300
    config.batch_size = 32
    config.optimizer = {"fn": "optax:adam"}
    config.learning_rate = 1e-2
    config.seeds = 10
    config.tune = {"learning_rate": [5e-3, 1e-2, 2e-2]}
    config.tune_by = {"metric": "validation/f1", "minimize": False, "seeds": 1}
    return config


def bilstm_crf(config):
    """A CRF over a bidirectional LSTM against a softmax for each word, with and without letters.

    The paper tags four languages of CoNLL with vectors of words learned elsewhere, LSTMs of 100 and
    plain gradient descent; here 600 generated sentences train LSTMs of 32 with Adam, from nothing.
    Half of the words of names are in no dictionary, so that only letters and neighbours tell. Of
    its two networks only the LSTM-CRF is here, not the stack LSTM.
    """
    config.arms = {
        "softmax_words": {"model.crf": False, "model.letters": 0},
        "crf_words": {"model.letters": 0},
        "softmax": {"model.crf": False},
        "crf": {},
    }
    config.claims = [
        {
            "metric": "test/f1",
            "arm": "crf",
            "over": "softmax",
            "at_least": 0.0,
            "margin": 0.005,
            "primary": True,
            "text": "F1 of spans, CRF over softmax",
        },
        {
            "metric": "test/f1",
            "arm": "crf",
            "over": "crf_words",
            "at_least": 0.0,
            "text": "F1 of spans of the CRF, with letters over without",
        },
        {
            "metric": "test/f1",
            "arm": "crf_words",
            "over": "softmax_words",
            "at_least": 0.0,
            "text": "F1 of spans without letters, CRF over softmax",
        },
        {
            "metric": "test/broken",
            "arm": "crf",
            "over": "softmax",
            "at_most": 0.0,
            "text": "share of tags that cannot follow the one before, CRF over softmax",
        },
    ]
    config.figure = [
        {"kind": "arms", "metric": "test/f1", "label": "F1 of spans"},
        {
            "kind": "arms",
            "metric": "test/broken",
            "label": "share of neighbouring tags that make no sense",
        },
    ]
