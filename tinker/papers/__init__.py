"""The catalogue: a row for each paper that works here.

ROOM.toml holds ``[[paper]]`` tables: ``id``, ``title``, ``source``, ``functions`` (import paths),
``study`` (``"ROOM/THEME:function"``), ``claim``, and ``checked``: "official", "equation" or "both".
"""

import tomllib
from importlib import resources


def rows(room=None):
    """The rows of a room, or of all.

    Args:
      room: Such as ``"losses"``; None for all rooms.

    Returns:
      ``{id: row}``, each row a dict with its ``room``, sorted by room and id.
    """
    found = {}
    files = [f for f in resources.files(__name__).iterdir() if f.name.endswith(".toml")]
    for file in sorted(files, key=lambda f: f.name):
        name = file.name.removesuffix(".toml")
        if room in (None, name):
            table = tomllib.loads(file.read_text(encoding="utf-8"))
            for row in sorted(table["paper"], key=lambda row: row["id"]):
                found[row["id"]] = {**row, "room": name}
    return found
