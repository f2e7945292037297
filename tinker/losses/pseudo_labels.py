"""Losses of what a network itself takes for the label."""

import jax
import jax.numpy as jnp

from tinker.losses.classification import cross_entropy


def pseudo_labelled(apply, weak, strong, *statistics, weight):
    r"""Cross-entropy to the network's own guess from a weaker view, weighted by its confidence.

    .. math:: \ell = \lambda(p)\,\big({-\log f(x^s)_{\hat y}}\big), \qquad
              p = f(x^w),\; \hat y = \arg\max_k p_k

    As a program's loss it reads ``("apply", "unlabeled/image/0", "unlabeled/image/1")``, where the
    data has a stream ``unlabeled`` of two views, and what the weight reads of a memory. No gradient
    passes the guess or its weight.

    Args:
      apply: The networks as functions; the model returns ``logits`` ``[batch, classes]``.
      weak: The view that is guessed from, ``[batch, …]``.
      strong: The view that is learned, ``[batch, …]``.
      *statistics: What the weight reads beside p.
      weight: ``weight(p, *statistics) -> [batch]``; in a config a partial spec of
        :func:`above_threshold` (FixMatch) or :func:`truncated_gaussian` (SoftMatch).

    Returns:
      Loss per example in nats, ``[batch]``, float32. Those of weight 0 count in the batch's mean.

    Source: FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence,
      NeurIPS 2020, arXiv:2001.07685; weighted SoftMatch: Addressing the Quantity-Quality Tradeoff
      in Semi-supervised Learning, ICLR 2023, arXiv:2301.10921.
    """
    guess = jax.lax.stop_gradient(apply(weak)["logits"])
    loss = cross_entropy(apply(strong)["logits"], jnp.argmax(guess, -1))
    return guess_weight(guess, *statistics, weight=weight) * loss


def guess_weight(logits, *statistics, weight):
    r"""The weight of a guess, :math:`\lambda(\mathrm{softmax}(z))`; its mean is their quantity.

    Args:
      logits: Scores z, ``[..., classes]``, any float dtype; computed in float32 at least.
      *statistics: What the weight reads beside p.
      weight: ``weight(p, *statistics) -> [...]``, as in :func:`pseudo_labelled`.

    Returns:
      In [0, 1], ``[...]``, float32.

    Source: SoftMatch: Addressing the Quantity-Quality Tradeoff in Semi-supervised Learning,
      ICLR 2023, arXiv:2301.10921, the quantity of pseudo-labels.
    """
    p = jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    return weight(p, *statistics)


def above_threshold(p, *, threshold=0.95):
    r"""1 where the confidence :math:`\max_k p_k` reaches a threshold, else 0.

    Args:
      p: Probabilities, ``[..., classes]``.
      threshold: In [0, 1]; at 0 every guess counts.

    Returns:
      1.0 or 0.0, ``[...]``, float32.

    Source: FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence,
      NeurIPS 2020, arXiv:2001.07685, the mask of the unsupervised loss.
    """
    return (p.max(-1) >= threshold).astype(jnp.float32)


def truncated_gaussian(p, mean, variance, marginal, *, n_sigma=2.0):
    r"""A weight that falls off below the mean confidence as a Gaussian does, and is 1 above it.

    .. math:: \lambda = \exp\Big({-\frac{n^2 \min(c - \mu, 0)^2}{2 \sigma^2}}\Big), \qquad
              c = \max_k \mathrm{UA}(p)_k

    with UA as :func:`uniform_alignment`.

    Args:
      p: Probabilities, ``[..., classes]``.
      mean: :math:`\mu`, ``[]``: the running mean of c, see
        :func:`tinker.optim.confidence_statistics`.
      variance: :math:`\sigma^2` > 0, ``[]``, its running variance.
      marginal: The running mean of p, ``[classes]``.
      n_sigma: n, by which :math:`\sigma` is divided; 2 in the authors' code.

    Returns:
      In [0, 1], ``[...]``, float32.

    Source: SoftMatch: Addressing the Quantity-Quality Tradeoff in Semi-supervised Learning,
      ICLR 2023, arXiv:2301.10921, the truncated Gaussian of its weighting function.
    """
    below = jnp.minimum(uniform_alignment(p, marginal).max(-1) - mean, 0.0)
    return jnp.exp(-(n_sigma**2) * jnp.square(below) / (2 * jnp.maximum(variance, 1e-12)))


def uniform_alignment(p, marginal):
    r"""Probabilities made even over the classes on average.

    .. math:: \mathrm{UA}(p)_k \propto \frac{1 / K}{\bar p_k}\, p_k

    with 1e-6 added above and below the line, as in the authors' code.

    Args:
      p: Probabilities, ``[..., classes]``.
      marginal: :math:`\bar p`, their mean over examples, ``[classes]``.

    Returns:
      Probabilities, ``[..., classes]``.

    Source: SoftMatch: Addressing the Quantity-Quality Tradeoff in Semi-supervised Learning,
      ICLR 2023, arXiv:2301.10921, uniform alignment.
    """
    raised = p * (1 / p.shape[-1] + 1e-6) / (marginal + 1e-6)
    return raised / raised.sum(-1, keepdims=True)
