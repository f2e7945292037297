"""The vision transformer."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinker.models.convolutional import check_image
from tinker.nn.placement import shard
from tinker.nn.positions import sincos2d
from tinker.nn.transformer import Transformer, identity
from tinker.numerics import UserError, check_choice


class ViT(nn.Module):
    """A vision transformer: patches, a pre-norm transformer, pooling, and a linear ``head``.

    An Image is Worth 16x16 Words, ICLR 2021, arXiv:2010.11929, Eq. 1-4. Patches are cut out by a
    reshape, whose kernel has the shape of the usual convolution's.

    Attributes:
      patch: Side of a patch in pixels; it divides height and width.
      depth: Number of blocks.
      width: Features of a token.
      heads: Attention heads.
      mlp_ratio: Width of the feed-forward's hidden layer over ``width``.
      classes: Width of ``logits``; None for a network without a head.
      dropout: Dropout of the embedded patches and in every block.
      pool: ``"gap"``, the mean over tokens, or ``"cls"``, a token of its own put first.
      posemb: ``"learned"`` or ``"sincos2d"``.
      attention_fn: Of the signature of ``jax.nn.dot_product_attention`` or flax's, see
        :class:`tinker.nn.Attention`.
      token_fn: ``token_fn(tokens, keys, info) -> (tokens, info)``, called in every block between
        attention and feed-forward, see :class:`tinker.nn.Block`. It may drop or merge tokens;
        ``info["size"]`` weights them in attention and in ``"gap"``. Needs ``scan=False``.
      quantize_fn: ``quantize_fn(x) -> x`` applied to what each matrix of the model reads.
      scan: Whether blocks run by ``jax.lax.scan``; their parameters are then stacked.
      remat: What backpropagation recomputes, see :class:`tinker.nn.Transformer`.
      intermediates: Whether to return every block's output.
      dtype: dtype of the computation; by default what inputs and parameters promote to.
    """

    patch: int = 4
    depth: int = 6
    width: int = 192
    heads: int = 3
    mlp_ratio: float = 4.0
    classes: int | None = 10
    dropout: float = 0.0
    pool: str = "gap"
    posemb: str = "learned"
    attention_fn: Callable = jax.nn.dot_product_attention
    token_fn: Callable | None = None
    quantize_fn: Callable = identity
    scan: bool = False
    remat: str | None = None
    intermediates: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, image, train=False):
        """Applies the network.

        Args:
          image: ``[batch, height, width, channels]``.
          train: Whether dropout is on.

        Returns:
          ``logits`` ``[batch, classes]``; ``embeddings`` ``[batch, width]``, what the head reads;
          ``tokens`` ``[batch, tokens, width]`` after the last norm; ``intermediates`` if asked
          for, ``{"blocks_0": [batch, tokens, width], …}``; ``info``, if there is a ``token_fn``.
        """
        check_image(self, image)
        check_choice("pool", self.pool, ("gap", "cls"))
        check_choice("posemb", self.posemb, ("learned", "sincos2d"))
        batch, height, width, channels = image.shape
        p, rows, columns = self.patch, height // self.patch, width // self.patch
        if rows * p != height or columns * p != width:
            raise UserError(f"patch={p} does not divide an image of {height}x{width}")

        patches = image.reshape(batch, rows, p, columns, p, channels).swapaxes(2, 3)
        patches = self.quantize_fn(patches.reshape(batch, rows * columns, p, p, channels))
        embed = nn.DenseGeneral(self.width, axis=(-3, -2, -1), dtype=self.dtype, name="embed")
        x = shard(embed(patches))
        if self.posemb == "learned":
            init = nn.initializers.normal(self.width**-0.5)
            position = self.param("position", init, (rows * columns, self.width))
        else:
            position = sincos2d(rows, columns, self.width)
        x = x + position.astype(x.dtype)
        if self.pool == "cls":
            cls = self.param("cls", nn.initializers.zeros, (self.width,)).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(cls, (batch, 1, self.width)), x], 1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)

        x, aux = Transformer(
            self.depth,
            self.heads,
            mlp_dim=int(self.mlp_ratio * self.width),
            dropout_rate=self.dropout,
            dtype=self.dtype,
            attention_fn=self.attention_fn,
            token_fn=self.token_fn,
            quantize_fn=self.quantize_fn,
            scan=self.scan,
            remat=self.remat,
            name="transformer",
        )(x, deterministic=not train, intermediates=self.intermediates)

        outputs = {"tokens": x, **aux}
        if self.pool == "cls":
            x = x[:, 0]
        else:
            size = aux.get("info", {}).get("size")
            x = x.mean(1) if size is None else _weighted_mean(x, size)
        outputs["embeddings"] = x
        if self.classes is not None:
            head = nn.Dense(self.classes, dtype=self.dtype, name="head")
            outputs["logits"] = head(self.quantize_fn(x))
        return outputs


def _weighted_mean(tokens, size):
    """The mean of tokens ``[batch, tokens, width]`` that stand for ``size`` of them each."""
    share = size.astype(jnp.float32) / size.sum(1, keepdims=True)
    return jnp.einsum("bt,btd->bd", share, tokens).astype(tokens.dtype)
