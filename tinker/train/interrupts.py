"""Signals: a scheduler that asks for the machine back finds the run saved."""

import itertools
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

    Within another one of its thread it is that one: what comes at the end of a run ends the sweep
    that the run belongs to.
    """

    _active = threading.local()
    _asked = itertools.count()  # JAX's sync point is a number that may never fall, as steps do

    def __enter__(self):
        outer = getattr(self._active, "signals", None)
        if outer is not None:
            return outer
        self._active.signals = self
        self.number, self._before = None, {}
        alone = jax.process_count() == 1
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,):
                handler = self._note if alone else self._pass_on
                self._before[number] = signal.signal(number, handler)
        return self

    def _note(self, number, frame):
        self.number = number
        self._restore()

    def _pass_on(self, number, frame):
        self._restore()
        os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *exception):
        if getattr(self._active, "signals", None) is self:
            self._active.signals = None
            self._restore()

    def after_step(self):
        """The signal at which the run stops, or None; all processes ask after each of their steps.

        They get the same answer after the same step.
        """
        if jax.process_count() > 1 and not self.number:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(next(self._asked)):
                self.number = signal.SIGTERM
        return self.number
