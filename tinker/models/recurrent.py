"""A recurrent language model."""

from typing import Any

import flax.linen as nn


class LSTMLM(nn.Module):
    """An LSTM over tokens, and the scores of the token that follows each.

    Attributes:
      vocab: Number of tokens.
      width: Of the tokens' vectors and the LSTM.
      dtype: dtype of the computation; by default what inputs and parameters promote to.
    """

    vocab: int
    width: int = 128
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens, carry=None, *, train=False):
        """Applies the network.

        Args:
          tokens: ``[batch, length]``, int32.
          carry: The state after earlier tokens, as returned; None at the start.
          train: Unused.

        Returns:
          A dict of ``logits`` ``[batch, length, vocab]`` and ``carry``, the state after the last.
        """
        x = nn.Embed(self.vocab, self.width, dtype=self.dtype, name="tokens")(tokens)
        cell = nn.OptimizedLSTMCell(self.width, dtype=self.dtype, name="lstm")
        carry, x = nn.RNN(cell, return_carry=True)(x, initial_carry=carry)
        return {"logits": nn.Dense(self.vocab, dtype=self.dtype, name="head")(x), "carry": carry}
