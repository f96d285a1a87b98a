"""Which server gets a request: least-loaded routing, conversations that stay where their prefix is, and a circuit
breaker for servers that fail."""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from nemo_openmath.core.errors import UserError

TRIPS_AFTER = 3  # consecutive failures
FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 30.0
REMEMBERED = 100_000  # conversations whose server is known
REREAD_S = 1.0
OVERLOAD = 16  # a conversation leaves its server when that has so many more requests than the least loaded one


@dataclass(eq=False, slots=True)
class Endpoint:
    """One base URL and what is known of its health."""

    url: str
    in_flight: int = 0
    """Requests that the server works on."""
    failures: int = 0
    """Failures since the last success."""
    pause_s: float = 0.0
    """Seconds of the last pause."""
    closed_until: float = 0.0
    """Time, on the monotonic clock, until which requests go elsewhere."""
    problem: str = ""
    """What its last failure was."""

    @property
    def on_trial(self) -> bool:
        """The pause is over but nothing has succeeded since: one request at a time may try."""
        return self.failures >= TRIPS_AFTER

    def available(self, now: float) -> bool:
        """Tell whether the server may get a request now."""
        return now >= self.closed_until and not (self.on_trial and self.in_flight)

    def succeeded(self) -> None:
        """Note a success: the server is healthy."""
        self.failures, self.pause_s, self.closed_until = 0, 0.0, 0.0

    def failed(self, problem: str = "") -> None:
        """Note one more failure. Those that arrive while the server is closed already (a thousand requests lose their
        connections at the same moment) are one event and do not lengthen the pause."""
        self.failures += 1
        self.problem = problem
        if self.failures >= TRIPS_AFTER and time.monotonic() >= self.closed_until:
            self.pause_s = min(MOST_PAUSE_S, 2 * self.pause_s or FIRST_PAUSE_S)
            self.closed_until = time.monotonic() + self.pause_s * random.uniform(0.5, 1.0)


class ServerPool:
    """The servers of one model.

    ``urls``: base URLs, or a path that is read again as it changes:

    - a file with one URL a line. (A server that restarts on another node writes its new address there.)
    - a folder of files ``*.url`` with one URL each: servers come and go, and for a while none may be there.
    """

    def __init__(self, urls: Sequence[str] | Path):
        self._file: Path | None = None
        self._stamp: tuple[int, int] | None = None
        self._read_at = 0.0
        self._servers: dict[str, Endpoint] = {}
        self._homes: OrderedDict[str, str] = OrderedDict()  # conversation -> url
        if isinstance(urls, Path):
            self._file = urls
        else:
            self._set(urls)
        self.refresh()

    @property
    def servers(self) -> list[Endpoint]:
        return list(self._servers.values())

    def refresh(self) -> None:
        """Read the file of addresses again if it has changed."""
        now = time.monotonic()
        if self._file is None or (self._servers and now - self._read_at < REREAD_S):
            return
        self._read_at = now
        if self._file.is_dir():
            urls = list(_urls_of_folder(self._file))
            self._servers = {u: self._servers.get(u) or Endpoint(u) for u in urls}
            return
        try:
            stat = self._file.stat()
            if (stamp := (stat.st_mtime_ns, stat.st_size)) == self._stamp:
                return
            lines = [line.strip() for line in self._file.read_text(encoding="utf-8-sig").splitlines()]
            urls = [line for line in lines if line and not line.startswith("#")]
            if not urls and not self._servers:
                raise UserError("no URL in it", file=self._file, remedy="write one URL a line, as http://host:port")
            if urls:
                self._set(urls)
                self._stamp = stamp
        except (OSError, UserError, UnicodeDecodeError) as error:
            if self._servers:
                return  # it is being replaced: the old addresses hold until the new ones are there
            if isinstance(error, UserError):
                raise
            raise UserError(
                "no list of servers", file=self._file, remedy="start the servers, or name their URLs"
            ) from error

    @property
    def away(self) -> str:
        """What is wrong where no server may be asked."""
        if self._file is not None and not self._servers:
            return f"no address in {self._file}/*.url"
        last = [f"{server.url} said: {server.problem}" for server in self._servers.values() if server.problem]
        return f"every server failed ({last[0]})" if last else "every server is away"

    def _set(self, urls: Sequence[str]) -> None:
        clean = list(dict.fromkeys(base_url(u) for u in urls))
        if not clean:
            raise UserError("no server URL given", remedy="name at least one, as http://host:port")
        self._servers = {u: self._servers.get(u) or Endpoint(u) for u in clean}

    def pick(self, conversation: str | None = None, avoid: Collection[Endpoint] = ()) -> Endpoint | None:
        """Return the server for the next request; None where none accepts any at the moment."""
        self.refresh()
        now = time.monotonic()
        open_ = [s for s in self._servers.values() if s.available(now)]
        candidates = [s for s in open_ if s not in avoid] or open_
        if not candidates:
            return None
        least = min(candidates, key=lambda s: (s.in_flight, random.random()))
        if conversation is None or len(self._servers) == 1:
            return least
        home = self._servers.get(self._homes.get(conversation, ""))
        chosen = home if home in candidates and home.in_flight < least.in_flight + OVERLOAD else least
        assert chosen is not None
        self._homes[conversation] = chosen.url
        self._homes.move_to_end(conversation)
        if len(self._homes) > REMEMBERED:
            self._homes.popitem(last=False)
        return chosen

    def seconds_until_open(self) -> float:
        """Return the seconds until a closed server may be tried again; a moment where one is on trial now."""
        now = time.monotonic()
        return max(0.05, min((s.closed_until - now for s in self._servers.values()), default=REREAD_S))

    @contextmanager
    def using(self, server: Endpoint) -> Iterator[None]:
        """Count a request as in flight on the server while the block runs."""
        server.in_flight += 1
        try:
            yield
        finally:
            server.in_flight -= 1


def _urls_of_folder(folder: Path) -> Iterator[str]:
    """Yield the URLs in a folder's files ``*.url``. One that is removed meanwhile, or holds no URL, is left out."""
    for file in sorted(folder.glob("*.url")):
        with suppress(OSError, UnicodeDecodeError, UserError):
            yield base_url(file.read_text(encoding="utf-8"))


def base_url(url: str) -> str:
    """Return the URL of a server without its ``/v1``. Raises UserError where it is none."""
    url = url.strip().rstrip("/").removesuffix("/v1")
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is none
        whole = False
    if not whole:
        raise UserError(f"not a server URL: {url!r}", remedy="write it as http://host:port")
    return url
