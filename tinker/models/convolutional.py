"""A small convolutional network and the residual networks for small images."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn

from tinker.nn.transformer import identity
from tinker.numerics import UserError, check_choice


class CNN(nn.Module):
    """3x3 convolutions, each with a ReLU and 2x2 max pooling, then one hidden layer and a head.

    Attributes:
      widths: Channels of the convolutions.
      hidden: Width of the hidden layer.
      classes: Width of ``logits``; None for a network without a head.
      dropout: Probability that an input of the hidden layer or of the head is dropped.
      quantize_fn: ``quantize_fn(x) -> x`` applied to what each layer reads.
      intermediates: Whether to return every convolution's output.
      dtype: dtype of the computation; by default what inputs and parameters promote to.
    """

    widths: Sequence[int] = (32, 64)
    hidden: int = 128
    classes: int | None = 10
    dropout: float = 0.0
    quantize_fn: Callable = identity
    intermediates: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, image, train=False):
        """Applies the network.

        Args:
          image: ``[batch, height, width, channels]``.
          train: Whether dropout is on.

        Returns:
          ``logits`` ``[batch, classes]``, ``embeddings`` ``[batch, hidden]``, and if asked for
          ``intermediates``: ``{"conv_0": [batch, height, width, widths[0]], …}`` before pooling.
        """
        check_image(self, image)
        options = dict(dtype=self.dtype, kernel_init=nn.initializers.he_normal())
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x, each = image, {}
        for i, features in enumerate(self.widths):
            x = nn.Conv(features, (3, 3), name=f"conv_{i}", **options)(self.quantize_fn(x))
            x = each[f"conv_{i}"] = nn.relu(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
        x = drop(x.reshape(x.shape[0], -1))
        x = nn.relu(nn.Dense(self.hidden, name="hidden", **options)(self.quantize_fn(x)))
        outputs = {"embeddings": x}
        if self.intermediates:
            outputs["intermediates"] = each
        if self.classes is not None:
            head = nn.Dense(self.classes, dtype=self.dtype, name="head")
            outputs["logits"] = head(self.quantize_fn(drop(x)))
        return outputs


class ResNet(nn.Module):
    """The residual network for 32x32 images: three stages of basic blocks, of width 1, 2, 4.

    Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385, Section 4.2. There
    shortcuts between stages are parameter-free (option A); here they are 1x1 convolutions with a
    norm (option B).

    Attributes:
      depth: Layers, 6n + 2 for n blocks in a stage: 8, 14, 20, 32, 44, 56, 110.
      width: Channels of the first stage.
      norm: ``"batch"`` (running statistics in ``batch_stats``), ``"group"`` (8 groups, or as many
        as divide the channels) or ``"layer"`` (one group: over height, width and channels).
      classes: Width of ``logits``; None for a network without a head.
      dropout: Probability that an input of the head is dropped.
      quantize_fn: ``quantize_fn(x) -> x`` applied to what each convolution and the head read.
      intermediates: Whether to return every stage's output.
      dtype: dtype of the computation; by default what inputs and parameters promote to.
    """

    depth: int = 20
    width: int = 16
    norm: str = "batch"
    classes: int | None = 10
    dropout: float = 0.0
    quantize_fn: Callable = identity
    intermediates: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, image, train=False):
        """Applies the network.

        Args:
          image: ``[batch, height, width, channels]``.
          train: Whether dropout is on, and batch norm uses (and records) the batch's statistics.

        Returns:
          ``logits`` ``[batch, classes]``, ``embeddings`` ``[batch, 4 * width]``, and if asked for
          ``intermediates``: ``{"stage_0": [batch, height, width, width], …}``.
        """
        check_image(self, image)
        if self.depth < 8 or self.depth % 6 != 2:
            raise UserError(f"depth={self.depth}: a ResNet has 6n + 2 layers: 8, 14, 20, 32, …")
        norm = functools.partial(make_norm, self.norm, train=train, dtype=self.dtype)
        options = dict(use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.he_normal())
        x = nn.Conv(self.width, (3, 3), name="stem", **options)(self.quantize_fn(image))
        x = nn.relu(norm(x, name="stem_norm"))
        each = {}
        for stage in range(3):
            for i in range((self.depth - 2) // 6):
                x = ResidualBlock(
                    self.width * 2**stage,
                    strides=2 if stage and not i else 1,
                    norm=self.norm,
                    quantize_fn=self.quantize_fn,
                    dtype=self.dtype,
                    name=f"stage_{stage}_block_{i}",
                )(x, train=train)
            each[f"stage_{stage}"] = x
        x = x.mean((1, 2))
        outputs = {"embeddings": x}
        if self.intermediates:
            outputs["intermediates"] = each
        if self.classes is not None:
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            head = nn.Dense(self.classes, dtype=self.dtype, name="head")
            outputs["logits"] = head(self.quantize_fn(x))
        return outputs


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with norms, added to the input or its projection.

    Attributes:
      features: Channels.
      strides: Of the first convolution and the projection.
      norm: As in :class:`ResNet`, with the two that follow.
    """

    features: int
    strides: int = 1
    norm: str = "batch"
    quantize_fn: Callable = identity
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs, train=False):
        norm = functools.partial(make_norm, self.norm, train=train, dtype=self.dtype)
        options = dict(use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.he_normal())
        x = shortcut = self.quantize_fn(inputs)
        x = nn.Conv(self.features, (3, 3), self.strides, name="conv_0", **options)(x)
        x = self.quantize_fn(nn.relu(norm(x, name="norm_0")))
        x = norm(nn.Conv(self.features, (3, 3), name="conv_1", **options)(x), name="norm_1")
        if inputs.shape != x.shape:
            projection = nn.Conv(self.features, (1, 1), self.strides, name="projection", **options)
            return nn.relu(x + norm(projection(shortcut), name="projection_norm"))
        return nn.relu(x + inputs)


def make_norm(kind, x, *, train, dtype, name):
    """Normalizes x ``[batch, height, width, channels]`` as :class:`ResNet` says."""
    check_choice("norm", kind, ("batch", "group", "layer"))
    if kind == "batch":
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=dtype, name=name)
    elif kind == "group":
        norm = nn.GroupNorm(math.gcd(8, x.shape[-1]), dtype=dtype, name=name)
    else:
        norm = nn.GroupNorm(1, dtype=dtype, name=name)
    return norm(x)


def check_image(model, image):
    """Raises a UserError unless the image has four axes."""
    if image.ndim != 4:
        raise UserError(
            f"{type(model).__name__} reads images [batch, height, width, channels], "
            f"not an array of shape {image.shape}"
        )
