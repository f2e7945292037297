"""The pre-norm transformer: attention, feed-forward, block and stack of blocks."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinker.nn.placement import BATCH_AXES, shard
from tinker.numerics import UserError, check_choice


def identity(x):
    """Returns its argument; what an unused slot holds."""
    return x


_HEADS = (BATCH_AXES, None, "tensor")  # how queries, keys and values are split over a mesh


class Attention(nn.Module):
    """Multi-head attention, with the parameters of flax's ``MultiHeadDotProductAttention``.

    Attributes:
      num_heads: Heads; they divide ``qkv_features``.
      qkv_features: Width of all heads together; by default the queries'.
      out_features: Width of the output; by default the queries'.
      use_bias: Whether the four projections add a bias.
      dtype: dtype of the computation; by default what inputs and parameters promote to.
      kernel_init: Initializer of the four kernels.
      attention_fn: Of the signature of ``jax.nn.dot_product_attention`` (the default, softmax in
        float32), such as :func:`tinker.kernels.flash_attention`; or flax's, ``attention_fn(query,
        key, value, bias=None, mask=None)``, where no more is asked of it.
      position_fn: ``position_fn(x, positions) -> x`` applied to queries and keys, such as
        :func:`rope`; for self-attention, where both have the same positions.
      quantize_fn: ``quantize_fn(x) -> x`` applied to what each projection reads. The two products
        inside ``attention_fn`` are its own.
    """

    num_heads: int
    qkv_features: int | None = None
    out_features: int | None = None
    use_bias: bool = True
    dtype: Any = None
    kernel_init: Callable = nn.initializers.xavier_uniform()
    attention_fn: Callable = jax.nn.dot_product_attention
    position_fn: Callable | None = None
    quantize_fn: Callable = identity

    @nn.compact
    def __call__(
        self,
        inputs_q,
        inputs_k=None,
        inputs_v=None,
        *,
        bias=None,
        mask=None,
        is_causal=False,
        positions=None,
        cache=None,
        return_qkv=False,
        **options,
    ):
        """Attends.

        Args:
          inputs_q: ``[batch, q_length, width]``.
          inputs_k: ``[batch, k_length, …]``; ``inputs_q`` by default.
          inputs_v: ``[batch, k_length, …]``; ``inputs_k`` by default.
          bias: Added to the scores; broadcasts to ``[batch, heads, q_length, k_length]``.
          mask: Boolean, of the same shape; False hides a key from a query.
          is_causal: Whether a query sees only keys up to its own: a keyword of ``attention_fn``,
            given if true, which spares an array of a mask.
          positions: ``[q_length]`` for ``position_fn`` and the cache; 0, 1, … by default.
          cache: Keys and values of earlier tokens, ``[batch, size, heads, head_dim]`` each, a ring
            in which position p has slot p mod size. The new ones are written before attending.
            Several at once must not pass the ring's end.
          return_qkv: Whether to return the queries, and the keys and values they attended to.
          **options: Further keywords of ``attention_fn``, such as flash attention's ``key_bias``.

        Returns:
          ``[batch, q_length, out_features]``, and with ``return_qkv`` also ``(queries, keys,
          values)``, ``[batch, q_length, heads, head_dim]`` and twice ``[batch, k_length, heads,
          head_dim]``: the updated cache, if there was one.
        """
        inputs_k = inputs_q if inputs_k is None else inputs_k
        inputs_v = inputs_k if inputs_v is None else inputs_v
        features = self.qkv_features or inputs_q.shape[-1]
        if features % self.num_heads:
            raise UserError(f"num_heads={self.num_heads} does not divide a width of {features}")

        def project(name, x, features, axis=-1):
            options = dict(axis=axis, use_bias=self.use_bias, dtype=self.dtype)
            options |= dict(kernel_init=self.kernel_init, name=name)
            return nn.DenseGeneral(features, **options)(self.quantize_fn(x))

        heads = (self.num_heads, features // self.num_heads)
        query = shard(project("query", inputs_q, heads), *_HEADS)
        key = shard(project("key", inputs_k, heads), *_HEADS)
        value = shard(project("value", inputs_v, heads), *_HEADS)
        if positions is None:
            positions = jnp.arange(inputs_q.shape[-2])
        if self.position_fn is not None:
            query, key = self.position_fn(query, positions), self.position_fn(key, positions)
        if cache is not None:
            slot = positions[0] % cache[0].shape[1]
            write = jax.lax.dynamic_update_slice_in_dim
            key, value = (
                write(old, new.astype(old.dtype), slot, axis=1)
                for old, new in zip(cache, (key, value))
            )
            query = query.astype(key.dtype)
        if is_causal:
            options["is_causal"] = True
        x = self.attention_fn(query, key, value, bias=bias, mask=mask, **options)
        x = project("out", shard(x, *_HEADS), self.out_features or inputs_q.shape[-1], (-2, -1))
        x = shard(x)
        return (x, (query, key, value)) if return_qkv else x


class FeedForward(nn.Module):
    """Two Dense layers, ``up`` and ``down``, with a nonlinearity and dropout between.

    Attributes:
      features: Width between the two.
      out_features: Width of the output; by default the input's.
      activation: The nonlinearity.
      dropout_rate: Probability that a hidden unit is dropped.
      dtype: dtype of the computation; by default what inputs and parameters promote to.
      kernel_init: Initializer of both kernels.
      quantize_fn: Applied to what each layer reads.
    """

    features: int
    out_features: int | None = None
    activation: Callable = nn.gelu
    dropout_rate: float = 0.0
    dtype: Any = None
    kernel_init: Callable = nn.initializers.xavier_uniform()
    quantize_fn: Callable = identity

    @nn.compact
    def __call__(self, inputs, *, deterministic=True):
        options = dict(dtype=self.dtype, kernel_init=self.kernel_init)
        x = nn.Dense(self.features, name="up", **options)(self.quantize_fn(inputs))
        x = shard(x, BATCH_AXES, *(None,) * (x.ndim - 2), "tensor")
        x = nn.Dropout(self.dropout_rate)(self.activation(x), deterministic=deterministic)
        out_features = self.out_features or inputs.shape[-1]
        return shard(nn.Dense(out_features, name="down", **options)(self.quantize_fn(x)))


class Block(nn.Module):
    r"""A pre-norm transformer block.

    .. math:: y = x + \mathrm{Attention}(\mathrm{LN}(x)), \qquad
              z = y + \mathrm{FeedForward}(\mathrm{LN}(y))

    Attributes:
      num_heads: Attention heads.
      mlp_dim: Width of the feed-forward's hidden layer; by default four times the input's.
      dropout_rate: Dropout after attention, inside and after the feed-forward.
      dtype: dtype of the computation; by default what inputs and parameters promote to.
      attention_fn: See :class:`Attention`.
      position_fn: See :class:`Attention`.
      bias_fn: ``bias_fn(x, positions, heads) -> dict`` of what attention reads, ``[batch, tokens,
        width]``, and ``[tokens]``: further keywords of ``attention_fn``, such as flash attention's
        ``query_bias`` and ``key_bias`` (:func:`alibi`, :func:`cable`) or ``spans`` and ``ramp``
        (:func:`expire_span`). The flax layers that it makes are the block's.
      quantize_fn: Applied to what each of the six matrices reads.
      token_fn: ``token_fn(tokens, keys, info) -> (tokens, info)``, called between attention and
        feed-forward on y ``[batch, tokens, width]`` and the keys ``[batch, tokens, heads,
        head_dim]``. It may change the number of tokens. ``info`` is a dict that goes from block to
        block: ``{"layer": i, "queries": …}``, the queries in the shape of the keys, and whatever
        the call before returned (arrays, under remat). Where ``info["size"]`` ``[batch, tokens]``
        says how many tokens each stands for, the next scores are biased by its logarithm, as if
        all of them were still there.
    """

    num_heads: int
    mlp_dim: int | None = None
    dropout_rate: float = 0.0
    dtype: Any = None
    attention_fn: Callable = jax.nn.dot_product_attention
    position_fn: Callable | None = None
    bias_fn: Callable | None = None
    quantize_fn: Callable = identity
    token_fn: Callable | None = None

    @nn.compact
    def __call__(
        self,
        inputs,
        *,
        bias=None,
        mask=None,
        is_causal=False,
        positions=None,
        cache=None,
        info=None,
        deterministic=True,
    ):
        """Applies the block.

        Args:
          inputs: x, ``[batch, tokens, width]``.
          bias: See :class:`Attention`.
          mask: See :class:`Attention`.
          is_causal: See :class:`Attention`.
          positions: See :class:`Attention`.
          cache: See :class:`Attention`; there is none for what ``bias_fn`` gives.
          info: What ``token_fn`` is given, a dict.
          deterministic: Whether dropout is off.

        Returns:
          ``(outputs, cache, info)``: z, the updated cache or None, and what ``token_fn`` returned,
          or else ``info``, with what ``bias_fn`` returned as its ``bias``.
        """
        if self.bias_fn is not None and cache is not None:
            raise UserError("bias_fn is of whole sequences: a cache does not keep what it gives")
        drop = nn.Dropout(self.dropout_rate, deterministic=deterministic)
        inputs = shard(inputs)
        x = nn.LayerNorm(dtype=self.dtype, name="attention_norm")(inputs)
        given = {}
        if self.bias_fn is not None:
            at = jnp.arange(x.shape[-2]) if positions is None else positions
            given = self.bias_fn(x, at, self.num_heads)
        options = dict(bias=bias, mask=mask, is_causal=is_causal, **given)
        x, (queries, *kv) = Attention(
            self.num_heads,
            dtype=self.dtype,
            attention_fn=self.attention_fn,
            position_fn=self.position_fn,
            quantize_fn=self.quantize_fn,
            name="attention",
        )(x, positions=positions, cache=cache, return_qkv=True, **options)
        y = inputs + drop(x)
        if self.token_fn is not None:
            y, info = self.token_fn(y, kv[0], {**(info or {}), "queries": queries})
        if self.bias_fn is not None:
            info = {**(info or {}), "bias": given}
        x = nn.LayerNorm(dtype=self.dtype, name="mlp_norm")(y)
        x = FeedForward(
            self.mlp_dim or 4 * inputs.shape[-1],
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
            quantize_fn=self.quantize_fn,
            name="mlp",
        )(x, deterministic=deterministic)
        return shard(y + drop(x)), tuple(kv) if cache is not None else None, info


class Transformer(nn.Module):
    """Blocks one after another, and a last LayerNorm (``norm``).

    Unrolled, the blocks' parameters are ``blocks_0``, ``blocks_1``, …; scanned, they are stacked
    along a first axis in ``blocks``. ``tinker.models.stack_layers`` makes one out of the other.

    Attributes:
      depth: Number of blocks.
      num_heads: See :class:`Block`, as all that follow up to ``token_fn``.
      attention_fn: Of all blocks, or a sequence of which they take turns, if unrolled.
      scan: Whether to run the blocks by ``jax.lax.scan``, so that only one is compiled.
      remat: What backpropagation recomputes: None for nothing, ``"full"`` for all but the blocks'
        inputs, or a name in ``jax.checkpoint_policies``.
    """

    depth: int
    num_heads: int
    mlp_dim: int | None = None
    dropout_rate: float = 0.0
    dtype: Any = None
    attention_fn: Callable | Sequence[Callable] = jax.nn.dot_product_attention
    position_fn: Callable | None = None
    bias_fn: Callable | None = None
    quantize_fn: Callable = identity
    token_fn: Callable | None = None
    scan: bool = False
    remat: str | None = None

    @nn.compact
    def __call__(
        self,
        inputs,
        *,
        bias=None,
        mask=None,
        is_causal=False,
        positions=None,
        cache=None,
        deterministic=True,
        intermediates=False,
    ):
        """Applies the blocks.

        Args:
          inputs: ``[batch, tokens, width]``.
          bias: See :class:`Attention`, as the next three.
          mask: Boolean mask of the scores.
          is_causal: Whether a token sees only itself and those before.
          positions: ``[tokens]``.
          cache: As for a block, with the blocks' caches along a first axis: ``[depth, batch, size,
            heads, head_dim]`` each.
          deterministic: Whether dropout is off.
          intermediates: Whether to return every block's output. A scan has to hold them all.

        Returns:
          ``(outputs, aux)``: outputs after the last norm, ``[batch, tokens, width]``, and a dict of
          ``cache`` if there was one, ``intermediates`` (``{"blocks_0": [batch, tokens, width], …}``
          whether scanned or not) if asked for, ``info`` if there is a ``token_fn``, and ``bias`` if
          there is a ``bias_fn``: what it returned, the blocks' along a first axis.
        """
        if self.scan and self.token_fn is not None:
            raise UserError("token_fn may change the number of tokens, so it needs scan=False")
        fields = ("num_heads", "mlp_dim", "dropout_rate", "dtype")
        fields += ("position_fn", "bias_fn", "quantize_fn", "token_fn")
        fields = {name: getattr(self, name) for name in fields}
        turns = (self.attention_fn,) if callable(self.attention_fn) else self.attention_fn
        if self.scan and len(turns) > 1:
            raise UserError("blocks are alike in a scan: several attention_fn need scan=False")

        def at(layer):
            """The function that applies block number ``layer``."""

            def run(block, x, layer_cache, info):
                x, layer_cache, info = block(
                    x,
                    bias=_proportional(bias, info),
                    mask=mask,
                    is_causal=is_causal,
                    positions=positions,
                    cache=layer_cache,
                    info=info if layer is None else {**info, "layer": layer},
                    deterministic=deterministic,
                )
                kept = {k: v for k, v in info.items() if k not in ("layer", "queries", "bias")}
                return x, layer_cache, kept, info.get("bias")

            return _remat(run, self.remat, prevent_cse=not self.scan)

        aux = {}
        if self.scan:

            def step(block, x, layer_cache):
                x, layer_cache, _, given = at(None)(block, x, layer_cache, {})
                return x, (layer_cache, given, x if intermediates else None)

            scanned = nn.scan(
                step,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                length=self.depth,
            )
            block = Block(name="blocks", attention_fn=turns[0], **fields)
            x, (caches, biases, stacked) = scanned(block, inputs, cache)
            each = [stacked[i] for i in range(self.depth)] if intermediates else []
        else:
            x, info, caches, biases, each = inputs, {}, [], [], []
            for i in range(self.depth):
                layer_cache = jax.tree.map(lambda c: c[i], cache)  # noqa: B023
                attend = turns[i % len(turns)]
                block = Block(name=f"blocks_{i}", attention_fn=attend, **fields)
                x, layer_cache, info, given = at(i)(block, x, layer_cache, info)
                caches.append(layer_cache)
                biases.append(given)
                each.append(x)
            caches, biases = (
                jax.tree.map(lambda *layers: jnp.stack(layers), *found)
                for found in (caches, biases)
            )
            if self.token_fn is not None:
                aux["info"] = info
        if cache is not None:
            aux["cache"] = caches
        if self.bias_fn is not None:
            aux["bias"] = biases
        if intermediates:
            aux["intermediates"] = {f"blocks_{i}": x for i, x in enumerate(each)}
        return nn.LayerNorm(dtype=self.dtype, name="norm")(x), aux


def _proportional(bias, info):
    """Biases the scores by log(size), as if every token that was merged were still there.

    Token Merging: Your ViT But Faster, ICLR 2023, arXiv:2210.09461, Eq. 1.
    """
    if "size" not in info:
        return bias
    log_size = jnp.log(info["size"].astype(jnp.float32))[:, None, None, :]
    return log_size if bias is None else bias + log_size


def _remat(fn, policy, prevent_cse):
    """Wraps a function of a module in ``jax.checkpoint`` with the policy of that name."""
    if policy is None:
        return fn
    policies = jax.checkpoint_policies
    named = {n for n in dir(policies) if n.endswith("saveable") or n.startswith("checkpoint_")}
    check_choice("remat", policy, (None, "full", *sorted(named)))
    policy = None if policy == "full" else getattr(policies, policy)
    return nn.remat(fn, policy=policy, prevent_cse=prevent_cse)
