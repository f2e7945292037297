"""Training one encoder of queries and of what they look for, then ranking all items for each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tinker import metrics
from tinker.experiments.train import seeded
from tinker.numerics import cosine_similarity, fold_in
from tinker.train.building import load_streams
from tinker.train.compiling import compiled
from tinker.train.loop import run as train_run
from tinker.train.specs import as_plain


def run(config, key):
    """Trains as the config says, and ranks all items for the queries of a split.

    Args:
      config: A training config, see :func:`tinker.train.default_config`, whose model reads
        ``tokens``, and whose data has ``tokens`` and ``relevant [queries, items]``; its stream
        ``items`` has ``tokens`` and ``place``, the item's column. The split is the first of
        ``eval_splits``. Beside it ``config.retrieval``, with ``output``, the name of the model's
        output whose cosines rank the items.
      key: Of all that a seed decides, as in :func:`tinker.experiments.train.run`.

    Returns:
      ``{split}/precision_at_1``, ``{split}/precision_at_5`` and ``{split}/r_precision``, means over
      queries; ``{split}/gap``, how much further the best of a query's relevant items is from its
      worst in cosines, of queries with two or more; ``loss`` and ``step`` as logged, ``[logs]``.
    """
    config = seeded(config, key)
    output = as_plain(config.retrieval)["output"]
    del config["retrieval"]
    split = config.eval_splits[0]
    config.eval_splits = ()
    state, _, rows = train_run(config, progress=False, key=fold_in(key, "train"))
    streams = load_streams(config, "train")
    program, items = compiled(config, streams).program, streams[1].dataset.source
    test = load_streams(config, split, False)[0].dataset.source
    tokens = np.empty_like(items["tokens"])
    tokens[items["place"]] = items["tokens"]
    found = _rank(program, output, state, test["tokens"], test["relevant"], tokens)
    logged = [row for row in rows if "steps_per_second" in row]
    curves = {name: np.array([row[name] for row in logged]) for name in ("loss", "step")}
    return {**{f"{split}/{name}": value for name, value in found.items()}, **curves}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _rank(program, output, state, queries, relevant, items):
    apply = program.context(state, {"tokens": queries})["apply"]
    scores = cosine_similarity(*(apply(x, train=False)[output] for x in (queries, items)))
    highest = jnp.where(relevant, scores, -jnp.inf).max(-1)
    lowest = jnp.where(relevant, scores, jnp.inf).min(-1)
    several = relevant.sum(-1) > 1
    return {
        "precision_at_1": metrics.precision_at_k(scores, relevant, k=1).mean(),
        "precision_at_5": metrics.precision_at_k(scores, relevant, k=5).mean(),
        "r_precision": metrics.r_precision(scores, relevant).mean(),
        "gap": jnp.sum(highest - lowest, where=several) / jnp.maximum(several.sum(), 1),
    }


def against_items(
    queries, apply, tokens, relevant, place, *, loss, temperature=0.05, output="projections"
):
    """A loss of the cosines of queries and items, which one network embeds.

    Args:
      queries: The queries' embeddings, ``[batch, dim]``.
      apply: The network, ``apply(tokens) -> outputs``.
      tokens: The items', ``[items, length]``: all of them, or a pool.
      relevant: Which items a query looks for, boolean, ``[batch, all items]``.
      place: The items' columns in ``relevant``, ``[items]``.
      loss: ``loss(scores [batch, items], relevant [batch, items])``; in a config a partial spec.
      temperature: Divides the cosines.
      output: Name of the output.

    Returns:
      What ``loss`` returns.
    """
    scores = cosine_similarity(queries, apply(tokens)[output]) / temperature
    return loss(scores, relevant[:, place])


def topic_items(seed, size, *, topics=25, words=400, name_length=3):
    """Items with names of a few words, drawn from those of their topic.

    Args:
      seed: Of which the words of topics and of items are drawn.
      size: Items; those of a topic are every ``topics``-th.
      topics: How many.
      words: In the language of the items: tokens 0 to words - 1.
      name_length: Words of a name.

    Returns:
      ``tokens`` int32 ``[size, name_length]`` and ``place`` int32 ``[size]``.
    """
    rng = np.random.default_rng((seed, 1))
    lexicon = np.stack([rng.permutation(words)[: words // 8] for _ in range(topics)])
    tokens = [rng.permutation(lexicon[i % topics])[:name_length] for i in range(size)]
    return {"tokens": np.int32(tokens), "place": np.arange(size, dtype=np.int32)}


def topic_queries(
    seed, size, *, items=500, topics=25, words=400, name_length=3, length=16, noise=0.2
):
    """Queries for several items of a topic at once, in words of another language than theirs.

    How many items a query looks for is skewed: one in a third of the queries, and up to ten. Its
    words are drawn from the names of all of them, each translated, one for one.

    Args:
      seed: As of :func:`topic_items`, whose items these queries look for.
      size: Queries.
      items: Items.
      topics: As there.
      words: As there; queries' tokens are words to 2 * words - 1.
      name_length: As there.
      length: Words of a query.
      noise: Share of its words that are any at all.

    Returns:
      ``tokens`` int32 ``[size, length]`` and ``relevant`` bool ``[size, items]``.
    """
    names = topic_items(seed, items, topics=topics, words=words, name_length=name_length)["tokens"]
    rng = np.random.default_rng((seed, 2))
    translation = words + rng.permutation(words)
    relevant, tokens = np.zeros((size, items), bool), np.empty((size, length), np.int32)
    for i in range(size):
        count = min(rng.geometric(1 / 3), 10)
        chosen = rng.permutation(np.arange(rng.integers(topics), items, topics))[:count]
        relevant[i, chosen] = True
        said = rng.choice(names[chosen].ravel(), length)
        said = np.where(rng.random(length) < noise, rng.integers(words, size=length), said)
        tokens[i] = translation[said]
    return {"tokens": tokens, "relevant": relevant}
