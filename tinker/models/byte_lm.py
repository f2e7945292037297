"""A decoder-only language model of bytes, its cache, and sampling from it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinker.nn.placement import shard
from tinker.nn.positions import rope
from tinker.nn.transformer import Transformer, identity
from tinker.numerics import UserError


class KVCache(NamedTuple):
    """Keys and values of the tokens read so far; see :func:`empty_cache`.

    ``keys`` and ``values`` are ``[depth, batch, size, heads, head_dim]``, rings in which position
    p has slot p mod size; ``position`` is that of the next token.
    """

    keys: jax.Array
    values: jax.Array
    position: jax.Array


class ByteLM(nn.Module):
    """A causal pre-norm transformer over tokens, with rotary positions.

    Attributes:
      vocab: Number of tokens.
      length: Most tokens in an input, and how far back sampling sees.
      width: Features of a token.
      depth: Number of blocks.
      heads: Attention heads.
      mlp_ratio: Width of the feed-forward's hidden layer over ``width``.
      dropout: Dropout of the embedded tokens and in every block.
      tie: Whether logits are products with the embeddings; otherwise a ``head`` computes them.
      attention_fn: Of the signature of ``jax.nn.dot_product_attention``. It is given ``is_causal``,
        or with a cache, where keys stand in a ring, a mask.
      position_fn: ``position_fn(x, positions) -> x`` on queries and keys; None leaves the order of
        tokens to ``bias_fn`` and causality.
      bias_fn: ``bias_fn(x, positions, heads) -> dict``, further keywords of ``attention_fn``; see
        :class:`tinker.nn.Block`. It allows no cache.
      quantize_fn: ``quantize_fn(x) -> x`` applied to what each matrix of the model reads.
      scan: Whether blocks run by ``jax.lax.scan``; their parameters are then stacked.
      remat: What backpropagation recomputes, see :class:`tinker.nn.Transformer`.
      intermediates: Whether to return every block's output.
      dtype: dtype of the computation; by default that of the parameters.
    """

    vocab: int = 256
    length: int = 256
    width: int = 256
    depth: int = 4
    heads: int = 4
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    tie: bool = True
    attention_fn: Callable = jax.nn.dot_product_attention
    position_fn: Callable | None = rope
    bias_fn: Callable | None = None
    quantize_fn: Callable = identity
    scan: bool = False
    remat: str | None = None
    intermediates: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens, train=False, cache=None):
        """Applies the network.

        Args:
          tokens: ``[batch, tokens]``, integers in [0, vocab).
          train: Whether dropout is on.
          cache: A :class:`KVCache` of the tokens before these. Several tokens at once must fit in
            what is left of it; single ones replace the oldest.

        Returns:
          ``logits`` ``[batch, tokens, vocab]`` of each next token; ``embeddings`` ``[batch,
          tokens, width]``, what the logits are computed from; ``intermediates`` if asked for,
          ``{"blocks_0": [batch, tokens, width], …}``; ``cache``, the new one, if one was given;
          ``bias``, what ``bias_fn`` returned, the blocks' along a first axis.
        """
        if tokens.ndim != 2:
            raise UserError(f"ByteLM reads tokens [batch, tokens], not of shape {tokens.shape}")
        count = tokens.shape[1]
        size = self.length if cache is None else cache.keys.shape[2]
        if count > size:
            what = "length" if cache is None else "a cache of size"
            raise UserError(f"{count} tokens are too many for {what}={size}")
        init = nn.initializers.normal(0.02)
        embed = nn.Embed(
            self.vocab, self.width, embedding_init=init, dtype=self.dtype, name="embed"
        )
        # Rows are taken from a whole table; XLA takes far longer ways to those of a split one.
        table = shard(embed.embedding, None, None)
        x = shard(jnp.take(table.astype(self.dtype or table.dtype), tokens, axis=0))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        positions = jnp.arange(count) + (0 if cache is None else cache.position)
        # Slots of a ring not yet written are those of positions still to come.
        mask = None if cache is None else (jnp.arange(size) <= positions[:, None])[None, None]
        x, aux = Transformer(
            self.depth,
            self.heads,
            mlp_dim=int(self.mlp_ratio * self.width),
            dropout_rate=self.dropout,
            dtype=self.dtype,
            attention_fn=self.attention_fn,
            position_fn=self.position_fn,
            bias_fn=self.bias_fn,
            quantize_fn=self.quantize_fn,
            scan=self.scan,
            remat=self.remat,
            name="transformer",
        )(
            x,
            mask=mask,
            is_causal=cache is None,
            positions=positions,
            cache=None if cache is None else (cache.keys, cache.values),
            deterministic=not train,
            intermediates=self.intermediates,
        )
        outputs = {"embeddings": x, **aux}
        if cache is not None:
            outputs["cache"] = KVCache(*aux["cache"], cache.position + count)
        if self.tie:
            outputs["logits"] = embed.attend(self.quantize_fn(x))
        else:
            head = nn.Dense(self.vocab, use_bias=False, dtype=self.dtype, name="head")
            outputs["logits"] = head(self.quantize_fn(x))
        return outputs


def empty_cache(model, batch, size, dtype=jnp.float32):
    """A cache in which nothing has been read.

    Args:
      model: A :class:`ByteLM`.
      batch: Sequences.
      size: Tokens that are kept.
      dtype: dtype of keys and values.

    Returns:
      A :class:`KVCache` of zeros.
    """
    shape = (model.depth, batch, size, model.heads, model.width // model.heads)
    zeros = jnp.zeros(shape, dtype)
    return KVCache(zeros, zeros, jnp.zeros((), jnp.int32))


def sample(model, params, prompt, steps, *, key, temperature=1.0, top_k=None):
    r"""Continues sequences, token by token.

    .. math:: y_t = \arg\max_v \; z_{tv} + T g_{tv}, \qquad g \sim \mathrm{Gumbel}(0, 1)

    which draws from :math:`\mathrm{softmax}(z / T)`, and takes the likeliest token at T = 0. The
    prompt is read in one pass, then one token at a time; each sees the ``model.length`` before it.

    Args:
      model: A :class:`ByteLM`.
      params: Its parameters.
      prompt: ``[batch, tokens]``, at least one token; the last ``model.length`` are read.
      steps: Tokens to add, at least one. Static under jit, as are ``model`` and ``top_k``.
      key: A jax random key.
      temperature: T >= 0.
      top_k: Draw among this many likeliest tokens; among all by default.

    Returns:
      The tokens that follow the prompt, ``[batch, steps]``, int32.

    Raises:
      UserError: An empty prompt, no steps, or a ``top_k`` not in [1, vocab].
    """
    if prompt.ndim != 2 or not prompt.shape[1]:
        raise UserError(f"prompt must be [batch, tokens] with a token or more, not {prompt.shape}")
    if steps < 1:
        raise UserError(f"steps={steps} must be at least 1")
    if top_k is not None and not 1 <= top_k <= model.vocab:
        raise UserError(f"top_k={top_k} is not in [1, {model.vocab}]")
    prompt = prompt[:, -model.length :]
    batch, count = prompt.shape
    dtype = params["embed"]["embedding"].dtype if model.dtype is None else model.dtype

    def draw(key, logits):
        scores, tokens = jax.lax.top_k(logits.astype(jnp.float32), top_k or model.vocab)
        scores = scores + temperature * jax.random.gumbel(key, scores.shape)
        choice = jnp.argmax(scores, -1, keepdims=True)
        return jnp.take_along_axis(tokens, choice, -1)

    def read(tokens, cache):
        outputs = model.apply({"params": params}, tokens, cache=cache)
        return outputs["logits"][:, -1], outputs["cache"]

    def step(carry, key):
        token, cache = carry
        logits, cache = read(token, cache)
        token = draw(key, logits)
        return (token, cache), token[:, 0]

    keys = jax.random.split(key, steps)
    size = min(count + steps, model.length)
    logits, cache = read(prompt, empty_cache(model, batch, size, dtype))
    first = draw(keys[0], logits)
    _, rest = jax.lax.scan(step, (first, cache), keys[1:])
    return jnp.concatenate([first, rest.T], 1)
