"""Cross-entropy over a large vocabulary, without its logits."""

import functools

import chex
import jax
import jax.numpy as jnp

from tinker.kernels.tiled_matmul.api import check_operands, reduce_rows, reduce_rows_gradients
from tinker.kernels.tiled_matmul.xla import as_bits


def linear_cross_entropy(
    hidden,
    weight,
    labels,
    *,
    bias=None,
    softcap=None,
    z_loss=0.0,
    where=None,
    filter_below=None,
    sort=False,
    vocab_axis=0,
    precision=None,
    implementation=None,
):
    r"""Softmax cross-entropy of a linear layer, whose logits are never held.

    .. math:: \ell = \log \sum_v e^{z_v} - z_y + \zeta \Big(\log \sum_v e^{z_v}\Big)^2, \qquad
              z_v = f(h \cdot w_v + b_v), \quad f(u) = c \tanh(u / c)

    Memory beyond the gradients is linear in the tokens: tiles of logits are summed as they are
    computed, and computed again for the gradients. The label's logit is a product of its own, and
    takes no part in the sums: :math:`\ell = \log(1 + \sum_{v \ne y} e^{z_v - z_y})`, in which
    nothing cancels where the label is almost certain.

    As a loss of a training config it reads, say, ``inputs=("embeddings",
    "params/model/embed/embedding", "targets")``.

    Args:
      hidden: h, ``[..., d]``, any float dtype; products are summed in float32 at least.
      weight: w, ``[vocab, d]``, such as an embedding table.
      labels: y, ``[...]``, integers in [0, vocab).
      bias: b, ``[vocab]``, or None; a token of -inf is left out.
      softcap: c > 0, or None for the identity; static.
      z_loss: :math:`\zeta`, which holds the log-sum-exp near zero.
      where: Optional boolean ``[...]``; False entries return 0, whatever their labels.
      filter_below: Backward, tiles are left out in which the probability of every token but the
        label is below this: an error of at most this in the derivative by a logit. The paper's is
        2**-12, a number that bfloat16 cannot add to 1. Static. None: nothing is left out. Early in
        training from scratch no token is likely, and this leaves out too much.
      sort: Whether the filter has the vocabulary in order of its mean logit, before the softcap, so
        that likely tokens share tiles. A sorted copy of the weight and one of its gradient are
        made. Static.
      vocab_axis: 0, or 1 for a weight ``[d, vocab]``, such as a dense layer's kernel, of which a
        transposed copy is made.
      precision: Of the products, as in ``jax.lax.dot``; static.
      implementation: None (the fastest measured), "xla" or "pallas".

    Returns:
      Loss per token in nats, ``[...]``, float32 at least. Differentiable in hidden, weight, bias.

    Raises:
      UserError: An unknown implementation, or "pallas" and a dtype or precision it has not.

    Source: Cut Your Losses in Large-Vocabulary Language Models, ICLR 2025, arXiv:2411.09009. There
      the label belongs to a tile, which it mostly keeps from being left out, and ``sort`` is always
      on where the filter is.
    """
    weight = weight if vocab_axis == 0 else weight.T
    chex.assert_equal_shape_prefix([hidden, labels], labels.ndim)
    chex.assert_rank(hidden, labels.ndim + 1)
    x = hidden.reshape(-1, hidden.shape[-1])
    chosen = check_operands(x, weight, bias, None, precision, implementation)
    at = (jnp.asarray(labels) if where is None else jnp.where(where, labels, 0)).reshape(-1)
    static = softcap, filter_below, sort and filter_below is not None, precision, chosen
    loss, lse = _loss(x, weight, bias, at, *static)
    loss = (loss + z_loss * lse**2).reshape(labels.shape)
    return loss if where is None else jnp.where(where, loss, 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7, 8))
def _loss(x, weight, bias, labels, *static):
    return _forward(x, weight, bias, labels, *static)[0]


def _forward(x, weight, bias, labels, softcap, filter_below, sort, precision, implementation):
    """The loss and the log-sum-exp of all logits."""
    options = {"softcap": softcap, "precision": precision, "implementation": implementation}
    others = reduce_rows(x, weight, bias, labels, kind="logsumexp", **options)
    own = (x.astype(others.dtype) * weight[labels]).sum(-1)
    if bias is not None:
        own += bias[labels]
    if softcap is not None:
        own = softcap * jnp.tanh(own / softcap)
    outputs = jax.nn.softplus(others - own), jnp.logaddexp(others, own)
    return outputs, (x, weight, bias, labels, own, others)


def _backward(softcap, filter_below, sort, precision, implementation, saved, g):
    x, weight, bias, labels, own, others = saved
    g_loss, g_lse = g
    options = {"softcap": softcap, "precision": precision, "implementation": implementation}
    w, b, excluded = weight, bias, labels
    if sort:
        mean = weight @ x.mean(0) if bias is None else weight @ x.mean(0) + bias
        order = jnp.argsort(mean)
        place = jnp.argsort(order)
        w, b, excluded = weight[order], None if bias is None else bias[order], place[labels]
    dx, dw, db = reduce_rows_gradients(
        x,
        w,
        b,
        excluded,
        jnp.logaddexp(others, own),
        g_loss + g_lse,
        kind="logsumexp",
        filter_below=filter_below,
        **options,
    )
    if sort:
        dw, db = dw[place], None if bias is None else db[place]
    h = g_lse * jax.nn.sigmoid(own - others) - g_loss * jax.nn.sigmoid(others - own)
    if softcap is not None:
        h *= 1 - (own / softcap) ** 2
    dx = (dx + h[:, None] * weight[labels]).astype(x.dtype)
    dw = _add_rows(dw, labels, h[:, None] * x)
    if bias is not None:
        db = _add_rows(db[:, None], labels, h[:, None])[:, 0]
    return dx, dw, db, None


_loss.defvjp(_forward, _backward)


def _add_rows(table, at, rows):
    """``table.at[at].add(rows)``, summed in the dtype of the rows, which is the wider one."""
    order = jnp.argsort(at)
    at, size = at[order], len(at)
    group = jnp.cumsum(jnp.concatenate([jnp.zeros(1, int), at[1:] != at[:-1]]))
    sums = jax.ops.segment_sum(rows[order], group, size, indices_are_sorted=True)
    at = jnp.full(size, len(table), at.dtype).at[group].set(at)  # beyond the table: no group
    new = (table[at] + sums).astype(table.dtype)
    table_bits = as_bits(table).at[at].set(as_bits(new), mode="drop")
    return jax.lax.bitcast_convert_type(table_bits, table.dtype)
