"""Encoders of text."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from tinker.nn.transformer import Transformer, identity
from tinker.numerics import UserError


class TextEncoder(nn.Module):
    """A pre-norm transformer over tokens, each of which sees all, and the mean of what it gives.

    Attributes:
      vocab: Number of tokens.
      length: Most tokens in an input; each place has a learned embedding.
      width: Features of a token.
      depth: Number of blocks; none leave a bag of words.
      heads: Attention heads.
      mlp_ratio: Width of the feed-forward's hidden layer over ``width``.
      dropout: Dropout of the embedded tokens and in every block.
      attention_fn: Of the signature of ``jax.nn.dot_product_attention`` or flax's, see
        :class:`tinker.nn.Attention`.
      quantize_fn: ``quantize_fn(x) -> x`` applied to what each matrix of the blocks reads.
      dtype: dtype of the computation; by default that of the parameters.
    """

    vocab: int
    length: int
    width: int = 256
    depth: int = 4
    heads: int = 4
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    attention_fn: Callable = jax.nn.dot_product_attention
    quantize_fn: Callable = identity
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens, train=False):
        """Applies the network.

        Args:
          tokens: ``[batch, tokens]``, integers in [0, vocab).
          train: Whether dropout is on.

        Returns:
          ``embeddings``, ``[batch, width]``.
        """
        if tokens.ndim != 2 or tokens.shape[1] > self.length:
            raise UserError(
                f"TextEncoder reads tokens [batch, up to {self.length}], not of shape "
                f"{tokens.shape}"
            )
        init = nn.initializers.normal(0.02)
        x = nn.Embed(self.vocab, self.width, embedding_init=init, dtype=self.dtype, name="embed")(
            tokens
        )
        places = self.param("positions", init, (self.length, self.width))
        x += places[: tokens.shape[1]].astype(x.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        if self.depth:
            x, _ = Transformer(
                self.depth,
                self.heads,
                mlp_dim=int(self.mlp_ratio * self.width),
                dropout_rate=self.dropout,
                dtype=self.dtype,
                attention_fn=self.attention_fn,
                quantize_fn=self.quantize_fn,
                name="transformer",
            )(x, deterministic=not train)
        return {"embeddings": x.mean(1)}
