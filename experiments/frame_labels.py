"""CTC learns where tokens are in speech-like frames: how well, how peaked and how late."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from tinker import data, losses, metrics
from tinker.numerics import fold_in, integer_seed
from tinker.train import Net, Term, compose, instantiate

BATCH = ("features", "labels", "frame_mask", "label_mask")


def run(config, key):
    """Trains in one compiled scan, and looks at even intervals at unseen sequences.

    Args:
      config: ``data``, options of :func:`tinker.data.speech_like`; ``model``, which reads features;
        ``optimizer`` (a spec without its ``learning_rate``) and ``learning_rate``; ``prior_scale``,
        the exponent of the label prior; ``delay_penalty``, from the share ``delay_from`` of the
        steps on; ``steps``; ``points``, how often to
        look; ``batch_size``; ``train_size``; ``eval_size``, of each of ``eval_splits``.
      key: Of the sequences, their order and the initialisation.

    Returns:
      For each split, at the end: ``token_error``, edits per label of what is decoded frame by
      frame; ``frame_error``, the share of frames that the best alignment of the true labels gives
      to another token than it was (or to none, or a pause to one); ``blank``, the mean probability
      of the blank; ``length``, frames of a token in that alignment; and ``delay``, frames from the
      start of a token to its first frame in that alignment. The first three are also given on the
      way, as ``NAME_curve`` [points] at ``step`` [points].
    """
    size, each = config.train_size, config.eval_size
    world = data.speech_like(integer_seed(key, "world"), size + 2 * each, **config.data)
    seed = integer_seed(key, "order")
    rows = functools.partial(data.batch_indices, size, config.batch_size, seed=seed)
    rows = np.stack([rows(step)[0] for step in range(config.steps)])
    rows = rows.reshape(config.points, -1, config.batch_size)
    batches = {k: world[k][rows] for k in BATCH}
    at = {"validation": slice(size, size + each), "test": slice(size + each, None)}
    spec = FrozenConfigDict({name: config[name] for name in ("model", "optimizer")})
    hyper = {k: config[k] for k in ("learning_rate", "prior_scale", "delay_penalty")}
    hyper["delayed_until"] = config.delay_from * config.steps
    results = {}
    for split in config.eval_splits:  # one, so that all runs are of one shape
        held_out = {k: x[at[split]] for k, x in world.items()}
        found = jax.device_get(_train(spec, hyper, fold_in(key, "train"), batches, held_out))
        results |= {f"{split}/{name}": curve[-1] for name, curve in found.items()}
        results |= {
            f"{name}_curve": found[name] for name in ("token_error", "frame_error", "blank")
        }
    return {**results, "step": np.linspace(0, config.steps, config.points + 1)[1:]}


@functools.partial(jax.jit, static_argnums=0)  # the specs: compiled once for seeds, rates and arms
def _train(spec, hyper, key, batches, held_out):
    model = instantiate(spec.model, "model")

    def prior(logits, frame_mask):
        return hyper["prior_scale"] * losses.log_label_prior(logits, frame_mask=frame_mask)

    def loss(logits, labels, frame_mask, label_mask, step):
        options = {"frame_mask": frame_mask, "label_mask": label_mask}
        on = step >= hyper["delayed_until"]
        options["delay_penalty"] = jnp.where(on, hyper["delay_penalty"], 0.0)
        log_prior = prior(logits, frame_mask)
        return losses.ctc_loss(logits, labels, log_prior=log_prior, **options)

    rate = hyper["learning_rate"]
    program = compose(
        model=Net(model, ("features",)),
        loss=Term(loss, ("logits", *BATCH[1:], "step")),
        optimizer=instantiate({**spec.optimizer, "learning_rate": lambda _: rate}, "optimizer"),
    )

    def look(params):
        batch = held_out
        masks = {"frame_mask": batch["frame_mask"], "label_mask": batch["label_mask"]}
        logits = model.apply({"params": params}, batch["features"])["logits"]
        log_prior = prior(logits, batch["frame_mask"])
        options = {"log_prior": log_prior, **masks}
        return judge(logits, losses.ctc_align(logits, batch["labels"], **options), log_prior, batch)

    def stretch(state, batches):
        state, _ = jax.lax.scan(lambda s, b: (program.train_step(s, b)[0], None), state, batches)
        return state, look(program.params(state)["model"])

    state = program.init(key, jax.tree.map(lambda x: x[0, 0], batches))
    return jax.lax.scan(stretch, state, batches)[1]


def judge(logits, alignment, log_prior, batch):
    """What is said of scores and of an alignment, as numbers."""
    frame_mask, label_mask = batch["frame_mask"], batch["label_mask"]
    labels, count = batch["labels"], jnp.maximum(label_mask.sum(), 1)
    decoded, decoded_mask = losses.ctc_greedy(logits - log_prior, frame_mask=frame_mask)
    masks = {"predicted_mask": decoded_mask, "label_mask": label_mask}
    edits = metrics.edit_distance(decoded, labels, **masks)
    wrong = frame_mask & (alignment != batch["alignment"])
    of_label = alignment[:, None] == jnp.arange(labels.shape[1])[:, None]
    there = label_mask & of_label.any(-1)
    delay = jnp.where(there, jnp.argmax(of_label, -1) - batch["starts"], 0)
    blank = jnp.where(frame_mask, jax.nn.softmax(logits, -1)[..., 0], 0.0)
    frames = jnp.maximum(frame_mask.sum(), 1)
    return {
        "token_error": edits.sum() / count,
        "frame_error": wrong.sum() / frames,
        "blank": blank.sum() / frames,
        "length": of_label.sum() / count,
        "delay": delay.sum() / jnp.maximum(there.sum(), 1),
    }
