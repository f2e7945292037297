"""Which keys a query may see, as functions of their positions."""

from typing import NamedTuple


class LocalPattern(NamedTuple):
    """Keys at most ``window - 1`` places before or after the query."""

    window: int

    def __call__(self, i, j):
        return (i - j < self.window) & (j - i < self.window)
