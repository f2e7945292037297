"""The ``tinker`` command: train, evaluate, look at data, run benchmarks.

Help and versions load nothing heavy: each command imports what it runs when it runs.
"""

import os
import sys

from tinker.cli.parsing import parse
from tinker.cli.printing import plain_log
from tinker.numerics.errors import UserError


def main(argv=None):
    """Runs a command line and returns its exit status.

    Args:
      argv: The words after ``tinker``; those of the process by default.

    Returns:
      0, or 2 for a mistake of the user's, told in one line on stderr. Any other exception is a
      fault of the program, or of the user's own functions, and passes with its traceback.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in argv
    if debug:
        os.environ.setdefault("JAX_TRACEBACK_FILTERING", "off")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # so that a config may name functions of a file lying here
    try:
        try:
            command = parse([word for word in argv if word != "--debug"])
        except SystemExit as finished:  # --help and --version
            return finished.code or 0
        with plain_log():
            status = command() or 0
        sys.stdout.flush()
        return status
    except UserError as error:
        if debug:
            raise
        print(f"tinker: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `tinker data | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
