"""A transducer: an encoder of frames, a reader of labels, and what joins the two."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from tinker.losses import rnnt_windows, take_windows

from .speech import FrameEncoder


class Transducer(nn.Module):
    """Convolutions over frames, the last labels' vectors, and a layer over the sum of both.

    The label network has no state but the last labels, so that greedy decoding carries those alone
    (:func:`transducer_greedy`).

    Attributes:
      classes: Number of labels, the blank among them.
      width: Of all layers.
      kernel: See :class:`FrameEncoder`, as the next two.
      depth: Number of convolutions.
      ahead: Of a kernel's frames, those after the present one.
      context: Number of labels that the label network reads.
      durations: Number of durations to predict, for :func:`tinker.losses.tdt_loss`; 0 for none.
      window: Number of labels of a frame's window, for :func:`tinker.losses.pruned_rnnt_loss`; 0
        for all.
      blank: The class of no label.
      dtype: dtype of the computation; by default what inputs and parameters promote to.
    """

    classes: int
    width: int = 64
    kernel: int | Sequence[int] = 5
    depth: int = 3
    ahead: int | None = None
    context: int = 2
    durations: int = 0
    window: int = 0
    blank: int = 0
    dtype: Any = None

    def setup(self):
        """Makes the layers."""
        options = {"dtype": self.dtype}
        self.encoder = FrameEncoder(
            None, self.width, self.kernel, self.depth, self.ahead, **options
        )
        self.labels = nn.Embed(self.context * self.classes, self.width, **options)
        self.of_frames = nn.Dense(self.width, **options)
        self.of_labels = nn.Dense(self.width, use_bias=False, **options)
        self.head = nn.Dense(self.classes + self.durations, **options)
        if self.window:
            self.frame_head = nn.Dense(self.classes, **options)
            self.label_head = nn.Dense(self.classes, **options)

    def encode(self, features):
        """``[batch, frames, width]``, of features ``[batch, frames, dimension]``."""
        return self.encoder(features)["embeddings"]

    def read(self, labels):
        """What is said of the last labels, ``[…, width]`` of ``[…, context]``."""
        return nn.relu(self.labels(labels + self.classes * jnp.arange(self.context)).sum(-2))

    def join(self, frames, labels):
        """``(logits, duration_logits)`` of encoded frames and labels, ``[…, width]`` each."""
        x = self.head(jnp.tanh(self.of_frames(frames) + self.of_labels(labels)))
        return x[..., : self.classes], x[..., self.classes :]

    def decide(self, frames, labels):
        """What ``join`` gives of encoded frames and the last labels, ``[…, context]``."""
        return self.join(frames, self.read(labels))

    def __call__(self, features, labels, frame_mask=None, label_mask=None, *, train=False):
        """Joins every frame with every label, or with those of its window.

        Args:
          features: ``[batch, frames, dimension]``.
          labels: ``[batch, labels]``, int32.
          frame_mask: Optional boolean ``[batch, frames]``, for the windows.
          label_mask: Optional boolean ``[batch, labels]``, for the windows.
          train: Unused.

        Returns:
          A dict of ``logits`` ``[batch, frames, labels + 1, classes]`` and, with durations,
          ``duration_logits`` ``[batch, frames, labels + 1, durations]``. With windows, their size
          stands in place of labels + 1, and there are ``starts`` ``[batch, frames]``,
          ``frame_logits`` ``[batch, frames, classes]`` and ``label_logits`` ``[batch, labels + 1,
          classes]``, for :func:`tinker.losses.simple_rnnt_loss`.
        """
        x, outputs = self.encode(features), {}
        padded = jnp.pad(labels, ((0, 0), (self.context, 0)), constant_values=self.blank)
        last = jnp.arange(labels.shape[1] + 1)[:, None] + jnp.arange(self.context)
        y = self.read(padded[:, last])
        frames, rows = x[:, :, None], y[:, None]
        if self.window:
            outputs = {"frame_logits": self.frame_head(x), "label_logits": self.label_head(y)}
            options = {"size": self.window, "frame_mask": frame_mask, "label_mask": label_mask}
            options["blank"] = self.blank
            outputs["starts"] = rnnt_windows(*outputs.values(), labels, **options)
            rows = take_windows(y, outputs["starts"], size=self.window)
        outputs["logits"], durations = self.join(frames, rows)
        return outputs | ({"duration_logits": durations} if self.durations else {})


class Transcript(NamedTuple):
    """What :func:`transducer_greedy` decoded.

    Attributes:
      labels: ``[batch, most_labels]``, int32; the blank after the last.
      mask: Where there is a label, bool ``[batch, most_labels]``.
      frames: The frame at which each was decided, int32 ``[batch, most_labels]``.
      evaluations: How often the joint network was asked, int32 ``[batch]``.
    """

    labels: jax.Array
    mask: jax.Array
    frames: jax.Array
    evaluations: jax.Array


def transducer_greedy(
    decide,
    encoded,
    *,
    most_labels,
    context=2,
    durations=None,
    max_symbols=10,
    frame_mask=None,
    blank=0,
):
    """Decodes a transducer by its best class, and with durations by the best of them too.

    Each sequence has a frame of its own. A blank goes to the next frame, or on by its duration, at
    least by one; a label stays, or goes on by its duration.

    Args:
      decide: ``decide(frames [batch, width], labels [batch, context]) -> (logits [batch, classes],
        duration_logits [batch, durations])``, such as a :class:`Transducer`'s.
      encoded: ``[batch, frames, width]``.
      most_labels: Where a transcript ends at the latest.
      context: Number of last labels that ``decide`` reads.
      durations: Durations in frames, as of :func:`tinker.losses.tdt_loss`; None for a transducer
        without.
      max_symbols: Labels at one frame, after which it goes to the next.
      frame_mask: Optional boolean ``[batch, frames]``, True at those that are there, which come
        first.
      blank: The class of no label.

    Returns:
      A :class:`Transcript`.

    Source: Efficient Sequence Transduction by Jointly Predicting Tokens and Durations, ICML 2023,
      arXiv:2304.06795, greedy inference.
    """
    chex.assert_rank(encoded, 3)
    batch, steps, _ = encoded.shape
    rows = jnp.arange(batch)
    ends = jnp.full(batch, steps) if frame_mask is None else frame_mask.sum(-1)

    def running(state):
        t, count = state[:2]
        return (t < ends) & (count < most_labels)

    def step(state):
        on = running(state)
        t, count, here, last, labels, frames, evaluations = state
        logits, lasting = decide(encoded[rows, jnp.minimum(t, steps - 1)], last)
        label = jnp.argmax(logits, -1).astype(labels.dtype)
        is_blank = label == blank
        ahead = is_blank.astype(jnp.int32)
        if durations is not None:
            ahead = jnp.asarray(durations)[jnp.argmax(lasting, -1)]
            ahead = jnp.where(is_blank, jnp.maximum(ahead, 1), ahead)
        here = jnp.where(is_blank, here, here + 1)
        ahead = jnp.where(on, jnp.where(here >= max_symbols, jnp.maximum(ahead, 1), ahead), 0)
        says = on & ~is_blank
        at = rows, jnp.where(says, count, most_labels)  # beyond the end: dropped
        return (
            t + ahead,
            count + says,
            jnp.where(ahead > 0, 0, here),
            jnp.where(says[:, None], jnp.concatenate([last[:, 1:], label[:, None]], 1), last),
            labels.at[at].set(label, mode="drop"),
            frames.at[at].set(t, mode="drop"),
            evaluations + on,
        )

    zeros, none = jnp.zeros(batch, jnp.int32), jnp.zeros((batch, most_labels), jnp.int32)
    last = jnp.full((batch, context), blank, jnp.int32)
    state = zeros, zeros, zeros, last, none + blank, none, zeros
    _, count, _, _, labels, frames, evaluations = jax.lax.while_loop(
        lambda state: running(state).any(), step, state
    )
    mask = jnp.arange(most_labels) < count[:, None]
    return Transcript(labels, mask, frames, evaluations)
