"""SIGTERM and SIGINT, noted: what runs leaves where everything that is finished is kept."""

import signal
import threading
from types import FrameType
from typing import Any

import jax

from bioimg_jax.checkpoint import Checkpoints
from bioimg_jax.errors import Preempted


class StopSignal:
    """Notes the signals between `with` and its end, so that what runs can save before it leaves."""

    def __enter__(self) -> "StopSignal":
        self.received = False
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True

    def requested(self, step: int, checkpoints: Checkpoints) -> bool:
        """The same answer on every process of a run."""
        if jax.process_count() > 1:
            return checkpoints.reached_preemption(step)
        return self.received

    def leave(self) -> None:
        """Between two results that are kept: raises `Preempted` once a signal came."""
        if self.received:
            raise Preempted("stopped while evaluating; what is finished is kept")
