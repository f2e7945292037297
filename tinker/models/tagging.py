"""Networks that give every word of a sentence a label."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class BiLSTMTagger(nn.Module):
    """A bidirectional LSTM over words, each a vector and what another reads of its letters.

    Attributes:
      vocabulary: Number of words, index 0 that of all that are not in the dictionary.
      classes: Number of labels.
      width: Of the LSTM over words, in each direction.
      word_width: Of a word's vector.
      letters: Number of letters; 0 for a network that does not read them.
      letter_width: Of a letter's vector and of the LSTM over letters, in each direction.
      dropout: Probability that a feature of a word is dropped.
      crf: Whether scores of transitions, starts and ends are learned, for
        :func:`tinker.losses.crf_loss`.
      dtype: dtype of the computation; by default what inputs and parameters promote to.
    """

    vocabulary: int
    classes: int
    width: int = 100
    word_width: int = 100
    letters: int = 26
    letter_width: int = 25
    dropout: float = 0.5
    crf: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, words, letters, *, train=False):
        """Applies the network.

        Args:
          words: ``[batch, length]``, int32.
          letters: ``[batch, length, spelling]``, int32.
          train: Whether dropout is on.

        Returns:
          A dict of ``logits`` ``[batch, length, classes]``, ``embeddings`` ``[batch, length,
          width]`` and, with ``crf``, ``transitions`` ``[classes, classes]``, ``start`` and ``end``
          ``[classes]``.

        Source: Neural Architectures for Named Entity Recognition, NAACL 2016, arXiv:1603.01360,
          the LSTM-CRF; with the common LSTM cell, where the authors' code has one of coupled gates.
        """
        x = nn.Embed(self.vocabulary, self.word_width, dtype=self.dtype, name="words")(words)
        if self.letters:
            spelled = nn.Embed(self.letters, self.letter_width, dtype=self.dtype, name="letters")
            spelled = spelled(letters).reshape(-1, letters.shape[-1], self.letter_width)
            forward, backward = self._read("letter", spelled, self.letter_width)
            ends = jnp.concatenate([forward[:, -1], backward[:, 0]], -1)
            x = jnp.concatenate([x, ends.reshape(*words.shape, -1)], -1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = jnp.concatenate(self._read("word", x, self.width), -1)
        x = jnp.tanh(nn.Dense(self.width, dtype=self.dtype, name="hidden")(x))
        logits = nn.Dense(self.classes, dtype=self.dtype, name="head")(x)
        outputs = {"logits": logits, "embeddings": x}
        if self.crf:
            zeros, classes = nn.initializers.zeros, self.classes
            outputs["transitions"] = self.param("transitions", zeros, (classes, classes))
            outputs["start"] = self.param("start", zeros, (classes,))
            outputs["end"] = self.param("end", zeros, (classes,))
        return outputs

    def _read(self, name, x, width):
        """States of LSTMs in both directions, ``[batch, length, width]`` each."""
        cells = (
            nn.OptimizedLSTMCell(width, dtype=self.dtype, name=f"{name}_{way}")
            for way in ("forward", "backward")
        )
        return [
            nn.RNN(cell, reverse=reverse, keep_order=True)(x)
            for cell, reverse in zip(cells, (False, True), strict=True)
        ]
