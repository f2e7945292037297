"""Networks for tables."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinker.models.perceptron import MLP
from tinker.nn.ensembles import BatchEnsembleDense, random_signs
from tinker.numerics import UserError, check_choice

VARIANTS = ("tabm", "mini", "naive", "packed")
AVERAGES = ("probabilities", "values")


class TabM(nn.Module):
    """Multilayer perceptrons that share their weights, trained side by side, predicting together.

    Every member has a linear head of its own; what else is its own depends on the variant:

    - "tabm": a scale of each layer's inputs and outputs, and biases (BatchEnsemble), all scales 1
      at first but for those of the features;
    - "mini": a scale of the features and nothing else;
    - "naive": as "tabm", but every scale is random at first;
    - "packed": everything, an ensemble of separate networks.

    Train it on each member's own loss, never on that of the mean:
    ``tinker.losses.mean_over_members`` of ``members``.

    Attributes:
      variant: "tabm", "mini", "naive" or "packed".
      hidden: Widths of the hidden layers.
      classes: Width of ``logits``.
      members: Number of members, k.
      dropout: Probability that a hidden unit is dropped, in each member on its own.
      activation: The nonlinearity.
      average: What is averaged over members to predict: "probabilities", of classes, or "values",
        for a regression.
      shared_batch: Whether all members see the same examples in training; else inputs are
        ``[batch, members, …]`` there.
      scale_init: Initializer of the features' scales, random signs; the paper takes a normal one
        after embeddings of numeric features.
      chunks: Widths of groups of features that share one scale at first, such as the indicators of
        one category; None for one each.
      dtype: dtype of the computation; by default what inputs and parameters promote to.

    Source: TabM: Advancing Tabular Deep Learning with Parameter-Efficient Ensembling, ICLR 2025,
      arXiv:2410.24210, Section 3. Kernels and biases start as those of :class:`MLP` do; the
      authors' are uniform, and equal biases in all members.
    """

    variant: str = "tabm"
    hidden: Sequence[int] = (512, 512, 512)
    classes: int = 10
    members: int = 32
    dropout: float = 0.1
    activation: Callable = nn.relu
    average: str = "probabilities"
    shared_batch: bool = True
    scale_init: Callable = random_signs
    chunks: Sequence[int] | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, *inputs, train=False):
        """Applies the networks.

        Args:
          *inputs: Arrays ``[batch, …]``, flattened and concatenated.
          train: Whether dropout is on.

        Returns:
          ``logits`` ``[batch, classes]``, whose softmax is the mean of the members' (with "values",
          the mean of the members' outputs); ``members`` ``[batch, members, classes]``, the logits
          of each; ``embeddings`` ``[batch, members, hidden[-1]]``.
        """
        check_choice("variant", self.variant, VARIANTS)
        check_choice("average", self.average, AVERAGES)
        apart = train and not self.shared_batch
        x = jnp.concatenate([x.reshape(*x.shape[: 1 + apart], -1) for x in inputs], -1)
        if not apart:
            x = jnp.broadcast_to(x[:, None], (len(x), self.members, x.shape[-1]))
        outputs = self._packed(x, train) if self.variant == "packed" else self._shared(x, train)
        members = outputs["members"]
        if self.average == "values":
            return {**outputs, "logits": members.mean(1)}
        log_p = jax.nn.log_softmax(members.astype(jnp.promote_types(members.dtype, jnp.float32)))
        return {**outputs, "logits": jax.nn.logsumexp(log_p, 1) - jnp.log(self.members)}

    def _packed(self, x, train):
        net = MLP(
            self.hidden, self.classes, self.dropout, self.activation, dtype=self.dtype,
            name="members",
        )  # fmt: skip
        outputs = self._each(lambda net, x: net(x, train=train))(net, x)
        return {"members": outputs["logits"], "embeddings": outputs["embeddings"]}

    def _shared(self, x, train):
        first = self.scale_init if self.chunks is None else _chunked(self.scale_init, self.chunks)
        rest = random_signs if self.variant == "naive" else nn.initializers.ones_init()
        if self.variant == "mini":
            x = x * self.param("in_scale", first, x.shape[1:])
        for i, features in enumerate(self.hidden):
            name = f"hidden_{i}"
            if self.variant == "mini":
                layer = nn.Dense(features, dtype=self.dtype, name=name)
            else:
                scales = {"in_scale_init": rest if i else first, "out_scale_init": rest}
                layer = BatchEnsembleDense(
                    features, self.members, dtype=self.dtype, name=name, **scales
                )
            x = self.activation(layer(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        heads = nn.Dense(self.classes, dtype=self.dtype, name="heads")
        return {"members": self._each(lambda head, x: head(x))(heads, x), "embeddings": x}

    def _each(self, fn):
        """``fn(module, x)`` of ``[batch, members, …]`` with parameters for every member."""
        return nn.vmap(
            fn,
            in_axes=1,
            out_axes=1,
            axis_size=self.members,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
        )


def _chunked(init, sizes):
    """An initializer that draws one value for each group of columns."""

    def draw(key, shape, dtype=jnp.float32):
        if sum(sizes) != shape[-1]:
            raise UserError(f"chunks={tuple(sizes)} are {sum(sizes)} features of {shape[-1]}")
        values = init(key, (*shape[:-1], len(sizes)), dtype)
        return jnp.repeat(values, jnp.array(sizes), -1, total_repeat_length=shape[-1])

    return draw
