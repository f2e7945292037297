"""Tables on a terminal or in a pipe, and what the library says on the way."""

import contextlib
import logging
import sys


class Lines(logging.Handler):
    """Prints records as the command's own lines on stderr, wherever that is now."""

    def emit(self, record):
        print(f"tinker: {record.getMessage()}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def plain_log():
    """What the library logs appears as plain lines, once, while a command runs."""
    logger, handler = logging.getLogger("tinker"), Lines()
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def console():
    """A rich console; in a pipe it is wide, so that lines stay whole."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=160)


def table(*columns, rows=(), right=(), title=None):
    """A table without borders.

    Args:
      *columns: Headings; none shows no heading.
      rows: Tuples of texts.
      right: Headings of the columns that are aligned on the right.
      title: A line above.

    Returns:
      A rich Table.
    """
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, title_justify="left", box=None, pad_edge=False)
    made.show_header = bool(columns)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made
