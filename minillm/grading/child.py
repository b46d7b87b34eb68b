"""The process that runs the student's code: pytest, while the parent says which test is next.

It reports as JSON lines. Should it hang or die, the parent goes on with another one.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any, TextIO

import pytest

from minillm.grading.plugin import ANNOUNCE

BEAT_SECONDS = 0.2


class Streamer:
    """Runs the tests that the parent asks for, and sends what happens."""

    def __init__(self, requests: TextIO, channel: TextIO, errors: TextIO) -> None:
        self.requests = requests
        self.seconds = 0.0  # of the test that runs
        self.channel = channel
        self.errors = errors
        self.lock = threading.Lock()
        self.running: str | None = None  # the test whose student's code runs
        self.cpu_start = self.started = 0.0
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        """Tell the parent how much the machine lets us calculate: a slow machine isn't an endless loop."""
        while True:
            time.sleep(BEAT_SECONDS)
            if (test := self.running) is not None:
                self._send({"event": "alive", "id": test, "cpu_s": time.process_time() - self.cpu_start})
                if time.monotonic() - self.started > 0.8 * self.seconds:  # before the parent gives up
                    self._note_place()

    def _note_place(self) -> None:
        """Write down which line is being executed, in the form of faulthandler, innermost call first.

        With Python's lock held: faulthandler itself reads the calls while they change, and now and then crashes.
        """
        places = ["Timeout (still running):"]
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        while frame is not None:
            places.append(f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}')
            frame = frame.f_back
        self.errors.write("\n".join(places) + "\n")
        self.errors.flush()

    def _send(self, event: dict[str, Any]) -> None:
        with self.lock:
            self.channel.write(json.dumps(event, default=repr) + "\n")
            self.channel.flush()

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[ANNOUNCE] = self.announce

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """In the place of pytest's own loop: one request a line, {"id", "next", "seconds"}, until there are no more."""
        items = {item.nodeid: item for item in session.items}
        for line in self.requests:
            request = json.loads(line)
            self.seconds = request["seconds"]
            item, nextitem = items[request["id"]], items.get(request["next"])
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=nextitem)
        return True

    def announce(self, event: dict[str, Any]) -> None:
        self._send(event)
        if event["event"] == "loaded":
            self.cpu_start, self.started = time.process_time(), time.monotonic()
            self.running = event["id"]
        else:
            self.running = None


def main() -> int:
    """Standard output is the channel to the parent; what students print goes where pytest captures it."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    arguments = json.loads(requests.readline())
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    errors = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    arguments += ["--in-process", "-p", "no:cacheprovider", "-p", "no:timeout", "-p", "no:xdist"]
    status = int(pytest.main(arguments, plugins=[Streamer(requests, channel, errors)]))
    channel.flush()
    return status
