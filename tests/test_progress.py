import io
import math
import os
import re
import sys
import time

import pytest

from fastcsm import progress
from fastcsm.progress import Bar, tell


class Full(io.StringIO):
    """A stream that takes nothing, or a terminal that does not."""

    def __init__(self, terminal=False):
        super().__init__()
        self.isatty, self.fileno = lambda: terminal, lambda: 2

    def write(self, text):
        raise OSError(28, "No space left on device")


def _closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [lambda: None, object, _closed, Full, lambda: Full(terminal=True)])
def test_nothing_fails_without_standard_error(monkeypatch, capsys, stream):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((80, 24)))
    tell("ü")
    with Bar("working") as bar:
        for done in range(3):
            bar.to(done, 2, "note")
        bar.say("a line")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("size", "words"), [((80, 24), "50%"), ((0, 24), "step 1"), ((80, 0), "step 1")])
def test_a_terminal_without_room_gets_lines(monkeypatch, size, words):
    pytest.importorskip("tqdm")
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(stream, "fileno", lambda: 2, raising=False)
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size(size))
    with Bar("working") as bar:
        bar.to(1, 2)
        assert words in stream.getvalue()


def test_characters_a_terminal_does_not_have_are_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    tell("größe")
    assert raw.getvalue() == b"gr\\xf6\\xdfe\n"


def test_a_long_silence_is_broken(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS", 0.05)
    deadline, said = time.monotonic() + 20, ""
    with Bar("reading", unit="row") as bar:
        while said.count("\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
            said += capsys.readouterr().err
        assert re.match(r"reading: \d+ s\nreading: ", said)
        bar.to(3, 7, "slow")
        while "row 3 of 7" not in said and time.monotonic() < deadline:
            time.sleep(0.01)
            said += capsys.readouterr().err
        assert re.search(r"reading: row 3 of 7, \d+ s, slow\n", said)
    capsys.readouterr()
    time.sleep(0.15)
    assert capsys.readouterr().err == ""


def test_bars_in_a_row_are_not_silent_for_long(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_ended", -math.inf)
    monkeypatch.setattr(progress, "SECONDS", 1.0)
    deadline, said, count = time.monotonic() + 20, "", 0
    while not said and time.monotonic() < deadline:
        with Bar(f"part {count}"):
            time.sleep(0.2)
        count += 1
        said = capsys.readouterr().err
    assert 1 < count < 20
    assert said.startswith("part ")


def test_a_quiet_bar_says_nothing(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS", 0.01)
    with Bar("reading", quiet=True) as bar:
        bar.to(1, 2)
        bar.say("a line")
        time.sleep(0.05)
    assert capsys.readouterr().err == ""
