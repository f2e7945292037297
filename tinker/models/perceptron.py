"""The multilayer perceptron."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from tinker.nn.transformer import identity


class MLP(nn.Module):
    """Dense layers with a nonlinearity and dropout after each, and a linear ``head``.

    Attributes:
      hidden: Widths of the hidden layers.
      classes: Width of ``logits``; None for a network without a head.
      dropout: Probability that a hidden unit is dropped.
      activation: The nonlinearity.
      quantize_fn: ``quantize_fn(x) -> x`` applied to what each layer reads.
      intermediates: Whether to return every hidden layer's output.
      dtype: dtype of the computation; by default what inputs and parameters promote to.
    """

    hidden: Sequence[int] = (256, 256)
    classes: int | None = 10
    dropout: float = 0.0
    activation: Callable = nn.relu
    quantize_fn: Callable = identity
    intermediates: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, *inputs, train=False):
        """Applies the network.

        Args:
          *inputs: Arrays ``[batch, …]``, flattened and concatenated.
          train: Whether dropout is on.

        Returns:
          ``logits`` ``[batch, classes]``, ``embeddings`` ``[batch, hidden[-1]]`` (the inputs, if
          there is no hidden layer), and if asked for ``intermediates``: ``{"hidden_0": …}``.
        """
        x = jnp.concatenate([x.reshape(x.shape[0], -1) for x in inputs], -1)
        each = {}
        for i, features in enumerate(self.hidden):
            x = nn.Dense(features, dtype=self.dtype, name=f"hidden_{i}")(self.quantize_fn(x))
            x = each[f"hidden_{i}"] = self.activation(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        outputs = {"embeddings": x}
        if self.intermediates:
            outputs["intermediates"] = each
        if self.classes is not None:
            head = nn.Dense(self.classes, dtype=self.dtype, name="head")
            outputs["logits"] = head(self.quantize_fn(x))
        return outputs
