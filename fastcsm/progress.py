"""A progress bar: tqdm on a terminal where it is installed, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any

_SECONDS_BETWEEN_LINES = 10.0


class Bar:
    """Shows how much of a task is done.

    Args:
        title: of the task.
        unit: of its parts.
        quiet: show nothing.
    """

    def __init__(self, title: str, unit: str = "step", quiet: bool = False):
        self._title, self._unit, self._quiet = title, unit, quiet
        self._bar: Any = None
        self._started = self._last = time.monotonic()
        self._tqdm: Any = None
        if not quiet and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._tqdm = partial(tqdm, desc=title, unit=unit, leave=False, dynamic_ncols=True)

    def to(self, done: int, total: int, note: str = "") -> None:
        """Show ``done`` of ``total`` with a note; the bar ends when they are equal."""
        if self._quiet:
            return
        if self._tqdm is not None:
            if self._bar is None:
                self._bar = self._tqdm(total=total, initial=done)
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
            if done >= total:
                self.close()
            return
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            line = f"{self._title}: {self._unit} {done} of {total}, {now - self._started:.0f} s"
            print(f"{line}, {note}" if note else line, file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Print one line above the bar."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
