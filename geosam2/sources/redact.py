"""Keys and passwords in URLs: found once at the door, then removed from everything we say.

A net hangs under the door: what looks like `?key=value` is hidden in every message and log line,
whether or not anybody knew of the URL (a VRT names its sources itself).
"""

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
# A source that is a URL from its beginning on, and URLs within any other text (WMS:http://...,
# /vsizip//vsicurl/http://..., XML), percent-encoded ones too (/vsicurl?url=http%3A%2F%2F...).
_WHOLE = re.compile(r"(/vsicurl/)?([A-Za-z][A-Za-z0-9+.\-]+://)")
_WITHIN = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://[^\s\"'<>]+")
_ENCODED = re.compile(r"https?%3A%2F%2F[^\s\"'<>&]+", re.IGNORECASE)
_VSICURL = re.compile(r"(/vsicurl\?)([^\s\"'<>]+)")  # its options, among them headers
# Where an archive's name ends and that of a member begins; GDAL repeats the parts apart.
_MEMBER = re.compile(r"[!}|/]")

_NET = re.compile(
    r"""((?:
    (?:[?&;]|%3F|%26)                          # what separates the parts of a query
    (?:[\w.\-]*[_.\-])?                        # x-amz-..., ocp-apim-...
    (?:key|apikey|token|accesstoken|sig|signature|secret|password|passwd)
    |(?<![\w/.\-])                             # unmistakable anywhere: PG:host=h password=...
    (?:password|passwd|api[_-]?key|access[_-]?token|subscription-key)
    )(?:=|%3D)["']?)
    (?!\*\*\*|%7B|\{)                          # hidden already, or a placeholder
    ((?:(?!%26)[^&\s"'<>])+)""",
    re.IGNORECASE | re.VERBOSE,
)


def hide_keys(text: str) -> str:
    """Any text without the values of query parameters that are named like a key.

    >>> hide_keys("GDAL: GDALOpen(/vsicurl/http://t.org/a.tif?v=1&api_key=abc)")
    'GDAL: GDALOpen(/vsicurl/http://t.org/a.tif?v=1&api_key=***'
    """
    return _NET.sub(rf"\1{HIDDEN}", text)


def printable(text: str) -> str:
    """A file name whose bytes are no UTF-8, as it can be written anywhere."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


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
        """Find the URLs in a source's text and take them apart; a plain path has no secrets."""
        found: list[str] = []
        shown, what = _take_apart(url, found)
        identity = hashlib.sha256(what.encode("utf-8", "surrogatepass")).hexdigest()
        return cls(printable(hide_keys(shown)), identity, _spellings(found))

    def clean(self, text: object) -> str:
        """Any text without the secrets."""
        cleaned = str(text)
        for secret in self.secrets:
            cleaned = cleaned.replace(secret, HIDDEN)
        return hide_keys(cleaned)

    def guard_logs(self) -> None:
        """Keep the secrets out of what httpx and rasterio log about requests."""
        secret_filter.secrets.update(self.secrets)
        for name in _TALKATIVE:
            logging.getLogger(name).addFilter(secret_filter)


class SecretFilter(logging.Filter):
    """Rewrites records; one instance for the process, adding it twice has no effect."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        for secret in sorted(self.secrets, key=len, reverse=True):
            message = message.replace(secret, HIDDEN)
        record.msg, record.args = hide_keys(message), ()
        return True


secret_filter = SecretFilter()
"""Knows the secrets of every source that was opened in this process."""

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


def _take_apart(text: str, found: list[str]) -> tuple[str, str]:
    """(as it may be shown, what it shows without who asks); secrets are added to `found`."""
    if match := _WHOLE.match(text):
        return _take_url_apart(match[0], text[match.end() :], found)
    shown = what = text
    for match in _VSICURL.finditer(text):
        pairs = [pair.partition("=") for pair in match[2].split("&")]
        for name, _, value in pairs:
            if name.lower() != "url":
                shown = shown.replace(f"{name}={value}", _hide_pair(name, "=", value, found))
    for match in (*_WITHIN.finditer(text), *_ENCODED.finditer(text)):
        url = match[0]
        decoded = url if "://" in url else unquote(url)
        scheme, rest = decoded.split("://", 1)
        hidden, bare = _take_url_apart(f"{scheme}://", rest, found)
        shown = shown.replace(url, hidden if url == decoded else quote(hidden, safe="*"))
        what = what.replace(url, bare)
    return shown, what


def _take_url_apart(scheme: str, rest: str, found: list[str]) -> tuple[str, str]:
    """As `_take_apart`, for one URL."""
    try:
        parts = urlsplit("https://" + rest)
    except ValueError:  # no URL after all; whatever opens it will say so
        for pair in rest.partition("?")[2].split("&"):
            _hide_pair(*pair.partition("="), found)
        return scheme + HIDDEN, scheme + rest
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
    return scheme + shown.removeprefix("https://"), what


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
    found += [value, _MEMBER.split(value)[0]]
    return f"{name}={HIDDEN}"


def _spellings(found: list[str]) -> tuple[str, ...]:
    """Each secret as written, decoded and percent-encoded; short ones would maul the text."""
    every = {form for s in found for form in (s, unquote(s), quote(s, safe=""), quote(s))}
    return tuple(sorted((s for s in every if len(s) >= 3), key=len, reverse=True))
