"""Signals: a scheduler that asks for the machine back finds the run saved."""

import os
import signal
import threading

import jax


class Interrupted(SystemExit):
    """A run that a signal ended after it was saved; the exit code is 128 + the signal's number."""

    def __init__(self, number, step):
        super().__init__(128 + number)
        self.signal, self.step = signal.Signals(number), step


class Signals:
    """Notes the first SIGTERM or SIGINT; the second acts as it did before.

    Where there are several processes SIGTERM is JAX's: its service has all of them stop at one
    step, also upon a TPU's notice of maintenance. SIGINT is passed on to it as a SIGTERM.
    """

    def __enter__(self):
        self.number, self._before = None, {}
        alone = jax.process_count() == 1
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,):
                handler = self._note if alone else self._pass_on
                self._before[number] = signal.signal(number, handler)
        return self

    def _note(self, number, frame):
        self.number = number
        self.__exit__()

    def _pass_on(self, number, frame):
        self.__exit__()
        os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def at(self, step):
        """The signal at which the run stops after this step, or None; all processes agree."""
        if jax.process_count() == 1:
            return self.number
        from jax.experimental import multihost_utils

        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
