"""SIGTERM, as clusters send it, and Ctrl-C: noted, to be obeyed between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

_TAKEN_FROM: dict[signal.Signals, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}


class Interruption:
    """Within it, SIGTERM and a first Ctrl-C are noted in `signal`; a second Ctrl-C interrupts as ever.

    Somebody else's handlers are left in place, and so are all outside of the main thread.
    """

    def __init__(self) -> None:
        self.signal = 0
        """Number of the signal that came; 0 if none did."""
        self._taken: list[signal.Signals] = []

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._taken = [number for number, usual in _TAKEN_FROM.items() if signal.getsignal(number) == usual]
        for number in self._taken:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *reason: object) -> None:
        for number in self._taken:
            signal.signal(number, _TAKEN_FROM[number])

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
