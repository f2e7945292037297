"""Networks that turn frames into labels: an encoder for CTC, and a transducer."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class FrameEncoder(nn.Module):
    """Residual convolutions over time, each of which may see only so many frames ahead.

    Attributes:
      classes: Width of ``logits``, at first 0; None for a network without a head.
      width: Of the frames inside.
      kernel: Frames that each convolution sees; a sequence of one for each, or a number.
      depth: Number of convolutions, if ``kernel`` is a number.
      ahead: Of a kernel's frames, those after the present one; None for half of them.
      dtype: dtype of the computation; by default what inputs and parameters promote to.
    """

    classes: int | None
    width: int = 64
    kernel: int | Sequence[int] = 5
    depth: int = 3
    ahead: int | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, features, *, train=False):
        """Applies the network.

        Args:
          features: ``[batch, frames, dimension]``.
          train: Unused.

        Returns:
          A dict of ``embeddings`` ``[batch, frames, width]`` and, with a head, ``logits`` ``[batch,
          frames, classes]``.
        """
        kernels = [self.kernel] * self.depth if isinstance(self.kernel, int) else self.kernel
        x = nn.Dense(self.width, dtype=self.dtype, name="inputs")(features)
        for i, kernel in enumerate(kernels):
            ahead = (kernel - 1) // 2 if self.ahead is None else self.ahead
            y = nn.LayerNorm(dtype=self.dtype, name=f"norm_{i}")(x)
            # As a product of spliced frames: XLA's convolutions are slow inside loops on CPU.
            y = jnp.pad(y, ((0, 0), (kernel - 1 - ahead, ahead), (0, 0)))
            y = jnp.concatenate([y[:, k : k + x.shape[1]] for k in range(kernel)], -1)
            x = x + nn.relu(nn.Dense(self.width, dtype=self.dtype, name=f"conv_{i}")(y))
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        outputs = {"embeddings": x}
        if self.classes is not None:
            zeros = nn.initializers.zeros
            head = nn.Dense(self.classes, dtype=self.dtype, kernel_init=zeros, name="head")
            outputs["logits"] = head(x)
        return outputs
