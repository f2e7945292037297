"""The error a user's mistake raises, and the nearest accepted name."""

import difflib


class UserError(ValueError):
    """A mistake in what the user asked for, told in one line; the command prints it bare."""


def check_choice(name, value, options):
    """Raises a UserError unless the value is one of the options, naming them and the nearest."""
    if value not in options:
        listed = ", ".join(map(str, options))
        raise UserError(f"{name}={value!r}: it takes {listed}{nearest(value, options)}")


def nearest(name, options):
    """Returns ``" (did you mean 'x'?)"`` for the closest of the options, or ``""``."""
    close = difflib.get_close_matches(str(name), [str(o) for o in options], n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
