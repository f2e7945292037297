"""tinker: machine-learning papers as pure JAX functions that compose.

Importing it loads no room: ``tinker.losses`` and the others load on first use.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
