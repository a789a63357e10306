"""Fetching tiles over HTTP as a good citizen: few connections, a pace per host, no needless GET."""

from __future__ import annotations

import email.utils
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from geosam2 import __version__
from geosam2.errors import SourceError
from geosam2.sources.diskcache import DiskCache, Entry
from geosam2.sources.redact import Redactor

log = logging.getLogger(__name__)

_WEEK = 7 * 86400.0
_LARGEST = 16 * 2**20  # bytes of one tile
_NO_RANGES = "Its server knows no range requests: download it first"


@dataclass(frozen=True)
class Service:
    """How a tile service is treated; the defaults suit a public one."""

    concurrency: int = 8
    """Connections at a time."""
    rate: float = 50.0
    """Requests per second to one host, in bursts of up to a second's worth."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with each request, such as Authorization or Referer; never shown or stored."""
    retries: int = 4
    """Further tries after a busy or failing answer."""
    backoff: float = 0.5
    """Seconds before the first of them; doubled each time, with some chance added."""
    patience: float = 60.0
    """Longest wait, in seconds, that a server may ask for with Retry-After."""
    timeout: float = 20.0
    """Seconds for connecting, and for each piece of an answer."""
    cache: str | Path | None = "default"
    """Folder of fetched tiles; "default": under $GEOSAM2_CACHE or the user's own; None: none."""
    cache_bytes: int = 2**30
    """Size of that folder, about."""

    def __post_init__(self) -> None:
        if self.concurrency < 1 or not self.rate > 0:
            raise SourceError(
                f"a service needs concurrency >= 1 and rate > 0, "
                f"got {self.concurrency} and {self.rate}"
            )


Span = tuple[int, int]  # offset and length, bytes


class _Answer(NamedTuple):
    """What is left of a response when its connection is free again."""

    status: int
    headers: httpx.Headers
    body: bytes


class Fetcher:
    """Gets URLs of one service; safe in threads."""

    def __init__(self, service: Service, door: Redactor) -> None:
        self.service = service
        self._door = door
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._cache = (
            None
            if service.cache is None
            else DiskCache(_cache_folder(service.cache), service.cache_bytes)
        )

    def get(self, url: str, key: str) -> bytes | None:
        """Body behind a URL, or None where there is nothing (204, 404).

        Args:
            url: With keys, as the server wants it.
            key: What the body is cached under; without keys.

        Raises:
            SourceError: With the URL redacted and what can be done.
        """
        return self.entry(url, key).body or None

    def entry(self, url: str, key: str, span: Span | None = None) -> Entry:
        """The same with what the server said of the version; `span`: only these bytes of it."""
        known = self._cache.get(key) if self._cache else None
        if known is None or not known.fresh:
            known = self._ask(url, known, span)
            if self._cache:
                self._cache.put(key, known)
        return known

    def forget(self, key: str) -> None:
        """Drop an entry whose body turned out to be no picture."""
        if self._cache:
            self._cache.path(key).unlink(missing_ok=True)

    def _ask(self, url: str, known: Entry | None, span: Span | None) -> Entry:
        """Entry for a URL, tried several times; a stale one is better than none."""
        for attempt in range(self.service.retries + 1):
            _pace(urlsplit(url).netloc, self.service.rate)
            try:
                answer = self._send(url, known, span)
            except httpx.HTTPError as error:
                reason, wait = _no_answer(error), self._delay(attempt)
            else:
                if answer.status == 304 and known is not None:
                    return replace(known, expires=_expiry(answer))
                if answer.status in (200, 204, 206, 404):
                    return _entry(answer)
                if answer.status not in (429, 500, 502, 503, 504):
                    raise self._error(url, f"HTTP {answer.status}", _remedy(answer))
                reason, wait = f"HTTP {answer.status}", self._wait_for(answer, attempt, url)
            if attempt < self.service.retries:
                log.info("%s from %s, again in %.1f s", reason, self._door.public, wait)
                time.sleep(wait)
        if known is not None:
            log.warning("%s from %s: an older copy is used", reason, self._door.public)
            return known
        tries = self.service.retries + 1
        raise self._error(
            url, f"{reason} after {tries} tries", "Try later, or lower rate= and concurrency="
        )

    def _send(self, url: str, known: Entry | None, span: Span | None) -> _Answer:
        conditions = {}
        if span is not None:
            conditions["Range"] = f"bytes={span[0]}-{sum(span) - 1}"
            conditions["Accept-Encoding"] = "identity"  # a range of the file, not of its gzip
        if known is not None and known.etag:
            conditions["If-None-Match"] = known.etag
        if known is not None and known.modified:
            conditions["If-Modified-Since"] = known.modified
        with self._connection().stream("GET", url, headers=conditions) as answer:
            body = bytearray()
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > _LARGEST:
                    remedy = _NO_RANGES if span else "Is this the URL of tiles?"
                    raise self._error(url, "more than 16 MiB", remedy)
            return _Answer(answer.status_code, answer.headers, bytes(body))

    def _connection(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                # certificates are read from disk: once, and only if there is something to fetch
                self._client = httpx.Client(
                    headers={"User-Agent": _USER_AGENT, **self.service.headers},
                    timeout=self.service.timeout,
                    follow_redirects=True,
                    limits=httpx.Limits(
                        max_connections=self.service.concurrency,
                        max_keepalive_connections=self.service.concurrency,
                    ),
                )
                weakref.finalize(self, self._client.close)
            return self._client

    def _delay(self, attempt: int) -> float:
        jitter = 1 + random.random() / 4  # noqa: S311 - to spread clients, not to keep secrets
        return float(self.service.backoff * 2**attempt * jitter)

    def _wait_for(self, answer: _Answer, attempt: int, url: str) -> float:
        asked = _retry_after(answer.headers.get("retry-after"))
        if asked is None:
            return self._delay(attempt)
        if asked > self.service.patience:
            raise self._error(
                url,
                f"HTTP {answer.status}, and the server asks to wait {asked:.0f} s",
                "Try later, or lower rate=",
            )
        return asked

    def _error(self, url: str, what: str, remedy: str) -> SourceError:
        return SourceError(f"{what} for {Redactor.of(url).public}. {remedy}")

    def close(self) -> None:
        """End idle connections."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"service": self.service, "door": self._door}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["service"], state["door"])  # type: ignore[misc]


_USER_AGENT = f"geosam2/{__version__} (+https://github.com/geosam2/geosam2)"

# One bucket per host for the whole process, however many scenes read from it.
_hosts: dict[str, tuple[float, float]] = {}
_hosts_lock = threading.Lock()


def _pace(host: str, rate: float) -> None:
    """Wait until a request to a host is due (token bucket that holds a second's worth)."""
    with _hosts_lock:
        now = time.monotonic()
        tokens, seen = _hosts.get(host, (max(rate, 1.0), now))
        tokens = min(max(rate, 1.0), tokens + (now - seen) * rate) - 1
        _hosts[host] = (tokens, now)
    if tokens < 0:
        time.sleep(-tokens / rate)


def _cache_folder(given: str | Path) -> Path:
    if given != "default":
        return Path(given)
    import platformdirs

    root = os.environ.get("GEOSAM2_CACHE") or platformdirs.user_cache_dir("geosam2")
    return Path(root) / "tiles"


def _entry(answer: _Answer) -> Entry:
    found = answer.status in (200, 206)
    return Entry(
        answer.body if found else b"",
        answer.headers.get("etag", "") if found else "",
        answer.headers.get("last-modified", "") if found else "",
        _expiry(answer),
    )


def _expiry(answer: _Answer) -> float:
    """When to ask again: what the server says, at least an hour, else a week."""
    age = _WEEK
    for part in answer.headers.get("cache-control", "").split(","):
        name, _, value = part.strip().partition("=")
        if name.lower() == "max-age" and value.isdigit():
            # an hour: a run reads a tile several times, and must see the same one
            age = max(float(value), 3600.0)
    return time.time() + age


def _retry_after(value: str | None) -> float | None:
    """Seconds, from a number or a date (RFC 9110, section 10.2.3).

    >>> _retry_after("3"), _retry_after("soon"), _retry_after("Thu, 01 Jan 1970 00:00:00 GMT")
    (3.0, None, 0.0)
    """
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        then = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, then.timestamp() - time.time())


def _no_answer(error: httpx.HTTPError) -> str:
    """Kind of failure; the text of httpx's errors may hold the URL."""
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    if isinstance(error, httpx.ConnectError):
        return "no connection"
    return f"broken answer ({type(error).__name__})"


def _remedy(answer: _Answer) -> str:
    if answer.status in (401, 403):
        return "The service refuses: check the key, the Referer or the terms of use"
    return "Check the template of the URL"
