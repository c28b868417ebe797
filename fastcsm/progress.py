"""What is shown of work in progress: tqdm on a terminal where it is installed, plain lines otherwise.

Nothing here fails because standard error is missing, closed, full or of a small alphabet.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

#: Nothing that is shown here is silent for longer, nor are bars that follow each other within the other.
SECONDS, _FOLLOWS = 5.0, 1.0
#: When the last bar ended, and when it last showed something.
_ended = _shown = -math.inf


def tell(line: str) -> None:
    """Print one line on standard error, where there is one."""
    stream = sys.stderr
    for text in (line, line.encode("ascii", "backslashreplace").decode()):
        try:
            stream.write(f"{text}\n")
            stream.flush()
        except UnicodeEncodeError:
            continue
        except (AttributeError, OSError, ValueError):  # none, full, closed
            pass
        return


def _is_terminal() -> bool:
    """Whether standard error is a terminal with room for a bar: some say that they have no columns."""
    try:
        return sys.stderr.isatty() and min(os.get_terminal_size(sys.stderr.fileno())) > 0
    except (AttributeError, OSError, ValueError):
        return False


class Bar:
    """Shows how much of a task is done; in a ``with`` block also while nobody says so.

    Args:
        title: of the task.
        unit: of its parts.
        quiet: show nothing.
    """

    def __init__(self, title: str, unit: str = "step", quiet: bool = False):
        self._title, self._unit, self._quiet = title, unit, quiet
        self._bar: Any = None
        self._tqdm: Any = None
        self._at: tuple[int, int, str] | None = None
        self._started = self._last = time.monotonic()
        if self._started - _ended < _FOLLOWS:
            self._last = _shown
        self._ended, self._lock = threading.Event(), threading.RLock()
        if not quiet and _is_terminal():
            try:
                from tqdm import tqdm
            except Exception:  # not installed, or broken
                return
            self._tqdm = partial(tqdm, desc=title, unit=unit, leave=False, dynamic_ncols=True)

    def __enter__(self) -> Bar:
        if not self._quiet:
            threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        global _ended, _shown
        with self._lock:
            self._ended.set()
            self.close()
        if not self._quiet:
            _ended, _shown = time.monotonic(), self._last

    def to(self, done: int, total: int, note: str = "") -> None:
        """Show ``done`` of ``total`` with a note; the bar ends when they are equal."""
        if self._quiet:
            return
        with self._lock:
            self._at = (done, total, note)
            self._show()
            if done >= total:
                self.close()

    def say(self, line: str) -> None:
        """Print one line above the bar."""
        if self._quiet:
            return
        with self._lock:
            self._last = time.monotonic()
            if self._bar is None or not self._drawn(lambda bar: bar.write(line, file=sys.stderr)):
                tell(line)

    def close(self) -> None:
        """End the bar."""
        with self._lock:
            self._at = None
            if self._bar is not None:
                self._drawn(lambda bar: bar.close())
                self._bar = None

    def _beat(self) -> None:
        """Show the bar whenever it was silent for too long."""
        while not self._ended.wait(max(self._last + SECONDS - time.monotonic(), 0.05)):
            with self._lock:
                if not self._ended.is_set():
                    self._show()

    def _show(self) -> None:
        if self._tqdm is not None and self._at is not None and self._drawn(self._draw):
            self._last = time.monotonic()
            return
        now = time.monotonic()
        if now - self._last >= SECONDS:
            self._last = now
            done, total, note = self._at or (0, 0, "")
            where = f"{self._unit} {done} of {total}" * bool(total)
            parts = (where, f"{now - self._started:.0f} s", note)
            tell(f"{self._title}: {', '.join(filter(None, parts))}")

    def _draw(self, _: Any) -> None:
        done, total, note = self._at or (0, 0, "")
        if self._bar is None:
            self._bar = self._tqdm(total=total, initial=done)
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)
        if time.monotonic() - self._last >= SECONDS:
            self._bar.refresh()

    def _drawn(self, action: Callable[[Any], object]) -> bool:
        """Whether tqdm's bar did it; where it cannot, lines go on in its place."""
        try:
            action(self._bar)
        except Exception:
            self._bar = self._tqdm = None
            return False
        return True
