"""Keys and passwords in URLs: found once at the door, then removed from everything we say."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit, urlunsplit

HIDDEN = "***"

# Query parameters that say what a picture shows. Any other value is hidden: a key has many names.
_HARMLESS = re.compile(
    r"(layers?|styles?|format|service|version|request|crs|srs|bbox|width|height|time|date"
    r"|tilematrix(set)?|tile(row|col|size)|transparent|[xyz]|zoom|row|col|lyrs|hl|size"
    r"|assets|bidx|expression|rescale|collection|item|scale|bands)",
    re.IGNORECASE,
)
# Parameters that prove who asks: left out of the signature, so a new key keeps the cache.
_CREDENTIAL = re.compile(
    r"key|token|sig|secret|pass|auth|credential|connectid|^x-(amz|goog|ms)-|^s[vret]$|^sp$|expire",
    re.IGNORECASE,
)
# A long run of letters and digits in a path is as likely a key as the id of an image.
_OPAQUE = re.compile(r"(?=[^/]*\d)(?=[^/]*[A-Za-z])[A-Za-z0-9_.\-~]{20,}")
_PLACEHOLDER = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True)
class Redactor:
    """A URL (or template, or path) with its secrets known.

    >>> door = Redactor.of("https://me:pw@tiles.org/v1/{z}/{x}/{y}.png?style=sat&api_key=abc123")
    >>> door.public
    'https://***@tiles.org/v1/{z}/{x}/{y}.png?style=sat&api_key=***'
    >>> door.clean("401 for /v1/3/1/2.png?api_key=abc123")
    '401 for /v1/3/1/2.png?api_key=***'
    """

    public: str
    """The URL as it may be shown."""
    identity: str
    """sha256 of the URL without credentials: what it shows, not who asks."""
    secrets: tuple[str, ...]
    """Strings that must not be shown, longest first."""

    @classmethod
    def of(cls, url: str) -> Redactor:
        """Take a URL apart; a plain file path has no secrets."""
        scheme, rest = _split_scheme(url)
        if scheme is None:
            return cls(url, hashlib.sha256(url.encode()).hexdigest(), ())
        parts = urlsplit("https://" + rest)
        found: list[str] = []
        host = parts.netloc
        if "@" in host:
            user, host = host.rsplit("@", 1)
            found += [user, *user.split(":", 1)]
            host = f"{HIDDEN}@{host}"
        path = "/".join(_hide_segment(segment, found) for segment in parts.path.split("/"))
        pairs = [pair.partition("=") for pair in parts.query.split("&")] if parts.query else []
        query = "&".join(_hide_pair(*pair, found) for pair in pairs)
        kept = sorted("".join(pair) for pair in pairs if not _CREDENTIAL.search(pair[0]))
        what = f"{scheme}{parts.netloc.rsplit('@', 1)[-1]}{parts.path}?{'&'.join(kept)}"
        shown = urlunsplit(("https", host, path, query, ""))
        return cls(
            scheme + shown.removeprefix("https://"),
            hashlib.sha256(what.encode()).hexdigest(),
            _spellings(found),
        )

    def clean(self, text: object) -> str:
        """Any text without the secrets."""
        cleaned = str(text)
        for secret in self.secrets:
            cleaned = cleaned.replace(secret, HIDDEN)
        return cleaned

    def guard_logs(self) -> None:
        """Keep the secrets out of what httpx and rasterio log about requests."""
        if self.secrets:
            _filter.secrets.update(self.secrets)
            for name in _TALKATIVE:
                logging.getLogger(name).addFilter(_filter)


class _SecretFilter(logging.Filter):
    """Rewrites records; one instance for the process, adding it twice has no effect."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        for secret in sorted(self.secrets, key=len, reverse=True):
            message = message.replace(secret, HIDDEN)
        record.msg, record.args = message, ()
        return True


_filter = _SecretFilter()
_TALKATIVE = (
    "httpx",
    "httpcore.http11",
    "httpcore.http2",
    "httpcore.connection",
    "httpcore.proxy",
    "rasterio",
    "rasterio._base",
    "rasterio._env",
    "rasterio._err",
    "rasterio._io",
    "rasterio._vsiopener",
    "rasterio._warp",
    "rasterio.env",
    "rasterio.io",
    "rasterio.vrt",
    "rasterio.session",
    "rasterio._path",
)


def _split_scheme(url: str) -> tuple[str | None, str]:
    match = re.match(r"(/vsicurl/)?([A-Za-z][A-Za-z0-9+.\-]+://)", url)
    return (match[0], url[match.end() :]) if match else (None, url)


def _hide_segment(segment: str, found: list[str]) -> str:
    bare = _PLACEHOLDER.sub("", segment)
    match = _OPAQUE.search(unquote(bare))
    if match is None or bare != segment:
        return segment
    # keep ".tif" and the like: a long file name of a scene is no key, an extension is none either
    _, dot, extension = segment.rpartition(".")
    if dot and extension.isalnum() and len(extension) <= 5:
        return segment
    found.append(segment)
    return HIDDEN


def _hide_pair(name: str, equals: str, value: str, found: list[str]) -> str:
    if not equals:  # "?abcdef": a bare token
        found.append(name)
        return HIDDEN if name else ""
    if _HARMLESS.fullmatch(name) or not value or _PLACEHOLDER.fullmatch(value):
        return f"{name}={value}"
    found.append(value)
    return f"{name}={HIDDEN}"


def _spellings(found: list[str]) -> tuple[str, ...]:
    """Each secret as written, decoded and percent-encoded; short ones would maul the text."""
    every = {form for s in found for form in (s, unquote(s), quote(s, safe=""), quote(s))}
    return tuple(sorted((s for s in every if len(s) >= 3), key=len, reverse=True))
