"""Signals: a scheduler that asks for the machine back finds the run saved."""

import signal
import threading

import jax
import numpy as np


class Interrupted(SystemExit):
    """A run that a signal ended after it was saved; the exit code is 128 + the signal's number."""

    def __init__(self, number, step):
        super().__init__(128 + number)
        self.signal, self.step = signal.Signals(number), step


class Signals:
    """Notes the first SIGTERM or SIGINT; the second acts as it did before."""

    def __enter__(self):
        self.number, self._before = None, {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame):
        self.number = number
        self.__exit__()

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)


def agreed(number, at_stop):
    """The signal that came, to any process, or 0: all must stop at the same step."""
    if jax.process_count() == 1:
        return number or 0
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.array(number or 0)).max()) if at_stop else 0
