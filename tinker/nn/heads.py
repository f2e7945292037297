"""What stands at the end of a network."""

import flax.linen as nn
import jax.numpy as jnp


class Prototypes(nn.Module):
    """Learned vectors by themselves, of unit length on average at the start.

    As a network of a program, ``nets.prototypes = dict(fn="tinker.nn:Prototypes", …, inputs=())``,
    they can be read by a loss.

    Attributes:
      count: How many, K.
      dim: Their length.
    """

    count: int
    dim: int

    @nn.compact
    def __call__(self):
        """Returns them, ``[count, dim]``, float32."""
        init = nn.initializers.normal(self.dim**-0.5)
        return self.param("vectors", init, (self.count, self.dim), jnp.float32)


class LearnedScalar(nn.Module):
    """A number that is learned, such as the temperature or the bias of a loss.

    As a network of a program, ``nets.temperature = dict(fn="tinker.nn:LearnedScalar", initial=0.1,
    positive=True)``, a loss reads it as ``temperature``.

    Attributes:
      initial: Where it starts.
      positive: Whether its logarithm is what is learned.
    """

    initial: float
    positive: bool = False

    @nn.compact
    def __call__(self):
        """Returns it, ``[]``, float32."""
        name, start = ("log", jnp.log(self.initial)) if self.positive else ("value", self.initial)
        learned = self.param(name, lambda _: jnp.asarray(start, jnp.float32))
        return jnp.exp(learned) if self.positive else learned
