"""Random keys derived from names."""

import zlib

import jax


def fold_in(key, name):
    """Derives a key from a key and a name, the same on every machine and in every process.

    Args:
      key: A jax random key.
      name: A string, folded in by its crc32, or an integer (traced or not).

    Returns:
      A jax random key.
    """
    return jax.random.fold_in(key, zlib.crc32(name.encode()) if isinstance(name, str) else name)
