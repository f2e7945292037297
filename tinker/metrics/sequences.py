"""How far predicted sequences are from the true ones."""

import chex
import jax
import jax.numpy as jnp
import numpy as np


def edit_distance(predicted, labels, *, predicted_mask=None, label_mask=None):
    """The least number of insertions, deletions and replacements that make one sequence another.

    Args:
      predicted: ``[batch, n]``, integers.
      labels: ``[batch, m]``, integers.
      predicted_mask: Optional boolean ``[batch, n]``, True where there is an element; those come
        first.
      label_mask: Optional boolean ``[batch, m]``.

    Returns:
      ``[batch]``, int32.
    """
    chex.assert_rank([predicted, labels], 2)
    masks = [predicted_mask, label_mask]
    lengths = [
        jnp.full(len(x), x.shape[1]) if mask is None else mask.sum(-1)
        for x, mask in zip((predicted, labels), masks, strict=True)
    ]
    places = jnp.arange(labels.shape[1] + 1)

    def row(above, x):
        """The distances of one element more to all beginnings of the labels."""
        i, element = x
        replaced = above[:, :-1] + (labels != element[:, None])
        best = jnp.minimum(above[:, 1:] + 1, replaced)
        best = jnp.concatenate([above[:, :1] + 1, best], 1)
        best = jax.lax.cummin(best - places, 1) + places  # insertions, any number in a row
        return jnp.where(i < lengths[0][:, None], best, above), None

    first = jnp.broadcast_to(places, (len(labels), len(places)))
    steps = jnp.arange(predicted.shape[1]), predicted.T
    last, _ = jax.lax.scan(row, first, steps)
    return jnp.take_along_axis(last, lengths[1][:, None], 1)[:, 0].astype(jnp.int32)


def span_f1(predicted, labels, *, tags):
    """The harmonic mean of precision and recall of spans; one counts if its ends and kind agree.

    Args:
      predicted: Tags, ``[batch, length]``, integers.
      labels: The true tags, ``[batch, length]``.
      tags: Names of the tags: ``"O"``, or ``"B-"``, ``"I-"``, ``"E-"`` or ``"S-"`` and a kind: the
        begin, inside and end of a span, or all of it. What begins and does not end is no span.

    Returns:
      In [0, 1], a float; 0 if nothing agrees.
    """
    found, true = (_spans(np.asarray(x), tags) for x in (predicted, labels))
    return 2 * len(found & true) / max(len(found) + len(true), 1)


span_f1.host = True


def _spans(sequences, tags):
    """A set of (row, first, last, kind)."""
    spans = set()
    for row, sequence in enumerate(sequences):
        begun = None
        for place, tag in enumerate(sequence):
            where, _, kind = tags[tag].partition("-")
            if where == "S":
                spans.add((row, place, place, kind))
            if where == "E" and begun is not None and begun[1] == kind:
                spans.add((row, begun[0], place, kind))
            if where == "B":
                begun = place, kind
            elif where != "I" or begun is None or begun[1] != kind:
                begun = None
    return spans
