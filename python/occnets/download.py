# SPDX-License-Identifier: MIT
"""Files from the network: checked, resumed after interruptions, and under their name only when they are complete."""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import os
import re
import shutil
import socket
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

ATTEMPTS = 4
"""How often a transfer is begun or continued before it counts as failed."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""

_PAUSE = 0.5  # seconds before the second attempt, doubled before each further one
_BLOCK = 1 << 18
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_BROKEN = (ConnectionError, TimeoutError, http.client.HTTPException)
_HOPELESS = (socket.gaierror, ConnectionRefusedError, ssl.SSLCertVerificationError)  # another attempt mends nothing
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_log = logging.getLogger("occnets")


class DownloadError(OSError):
    """A file could not be fetched; the message says from where, why, and what to do."""


class _BrokenTransferError(Exception):
    """The connection failed in a way that another attempt may mend."""


def cache_folder() -> Path:
    """Where downloads are kept: ``$OCCNETS_CACHE``, or ``occnets`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    own = os.environ.get("OCCNETS_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser() / "occnets"


def cached_path(url: str) -> Path:
    """Where the file of a URL is kept. Two URLs never share a place, also when their last parts are equal."""
    name = re.sub(r"[^\w.-]", "_", unquote(urlsplit(url).path).rpartition("/")[2]) or "file"
    return cache_folder() / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"


def fetch(
    url: str,
    *,
    sha256: str = "",
    progress: Callable[[int, int | None], None] | None = None,
    timeout: float = TIMEOUT,
) -> Path:
    """The file of a URL, from the cache if it is there.

    A broken transfer is continued where it stopped if the server can do that and the file has not changed meanwhile,
    and otherwise begun again. The file appears in the cache complete and checked, or not at all.

    Args:
        url: http or https.
        sha256: the file's SHA-256 in hexadecimal, or its first digits; empty for no check.
        progress: called with (bytes so far, bytes in all or None if the server does not say).
        timeout: seconds without a byte after which the connection counts as broken.

    Returns:
        The file in `cache_folder`.

    Raises:
        DownloadError: no connection, an error of the server, a file that is not the expected one, a full disk.
        ValueError: no http or https URL.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise ValueError(f"fetch: `url` must begin with http:// or https://, got {url!r}")
    target = cached_path(url)
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise DownloadError(
            f"{url}: the cache folder {target.parent} cannot be written ({error.strerror or error}); set OCCNETS_CACHE "
            f"to another folder"
        ) from error
    _log.info("downloading %s to %s", url, target)
    try:
        with os.fdopen(handle, "w+b") as stream:
            _Transfer(url, stream, progress, timeout).run()
            _verify(url, stream, sha256)
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)
    return target


def _verify(url: str, stream: BinaryIO, expected: str) -> None:
    if not expected:
        return
    stream.seek(0)
    digest = hashlib.sha256()
    while block := stream.read(_BLOCK):
        digest.update(block)
    found = digest.hexdigest()
    if not found.startswith(expected.lower()):
        raise DownloadError(
            f"{url}: wrong checksum: the file's SHA-256 is {found}, expected {expected}{'...' * (len(expected) < 64)}. "
            f"It was thrown away; try again, and if that gives the same, the file on the server is another one now"
        )


class _Transfer:
    """One file on its way, over several connections if need be."""

    def __init__(
        self, url: str, stream: BinaryIO, progress: Callable[[int, int | None], None] | None, timeout: float
    ) -> None:
        self.url, self.stream, self.progress, self.timeout = url, stream, progress, timeout
        self.validator = ""  # a strong ETag or date, without which parts of two connections must not be joined

    def run(self) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._attempt()
            except _BrokenTransferError as error:
                if attempt == ATTEMPTS:
                    raise DownloadError(
                        f"{self.url}: {error}, {ATTEMPTS} times; check the connection and try again, or download the "
                        f"file in another way and give its path"
                    ) from error
                _log.info("%s: %s; attempt %d of %d", self.url, error, attempt + 1, ATTEMPTS)
                time.sleep(_PAUSE * 2 ** (attempt - 1))

    def _attempt(self) -> None:
        have = self.stream.seek(0, os.SEEK_END)
        headers = {"User-Agent": "occnets", "Accept-Encoding": "identity"}
        if have and self.validator:
            headers |= {"Range": f"bytes={have}-", "If-Range": self.validator}
        try:
            request = urllib.request.Request(self.url, headers=headers)
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                self._receive(response, have)
        except urllib.error.HTTPError as error:
            self._explain(error)
        except urllib.error.URLError as error:
            words = f"no connection to {urlsplit(self.url).netloc} ({error.reason})"
            if isinstance(error.reason, _HOPELESS):
                raise DownloadError(
                    f"{self.url}: {words}; is this machine online? Or download the file elsewhere and give its path"
                ) from error
            raise _BrokenTransferError(words) from error
        except _BROKEN as error:
            words = "no answer in time" if isinstance(error, TimeoutError) else f"the connection broke ({error!r})"
            raise _BrokenTransferError(words) from error

    def _explain(self, error: urllib.error.HTTPError) -> None:
        error.close()
        if error.code in _BUSY:
            raise _BrokenTransferError(f"the server answers {error.code} ({error.reason})") from error
        if error.code == 416:  # the part is not the beginning of what the server has now
            self.stream.truncate(0)
            raise _BrokenTransferError("the server cannot continue the transfer") from error
        hint = "the file is not there any more" if error.code in (404, 410) else "access is refused"
        raise DownloadError(
            f"{self.url}: the server answers {error.code} ({error.reason}): {hint}; download the file in another way "
            f"and give its path"
        ) from error

    def _receive(self, response: Any, have: int) -> None:
        if response.headers.get_content_type() == "text/html":
            raise DownloadError(f"{self.url}: the server sent a web page, not the file; open the address in a browser")
        begun = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if response.status != 206 or begun is None or int(begun[1]) != have:
            have = 0
            if response.status == 206:
                self.validator = ""
                self.stream.truncate(0)
                raise _BrokenTransferError("the server continued at another place than asked")
        self.stream.seek(have)
        self.stream.truncate()
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None and length.isdecimal() else None
        tag = response.headers.get("ETag", "")
        self.validator = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")
        self._check_space(total, have)
        self._copy(response, have, total)

    def _check_space(self, total: int | None, have: int) -> None:
        folder = cache_folder()
        free = shutil.disk_usage(folder).free
        if total is not None and total - have > free:
            raise self._full(f"{(total - have) / 2**20:.0f} MiB are needed, {free / 2**20:.0f} MiB are free")

    def _full(self, words: str) -> DownloadError:
        return DownloadError(
            f"{self.url}: the disk of {cache_folder()} is full ({words}); make room or set OCCNETS_CACHE to another "
            f"folder"
        )

    def _copy(self, response: Any, done: int, total: int | None) -> None:
        while True:
            if self.progress is not None:
                self.progress(done, total)
            block = response.read(_BLOCK if total is None else min(_BLOCK, max(1, total - done)))
            if not block:
                break
            try:
                self.stream.write(block)
                self.stream.flush()
            except OSError as error:
                if error.errno in _FULL:
                    raise self._full(os.strerror(error.errno)) from error
                raise DownloadError(f"{self.url}: cannot be written to {cache_folder()} ({error})") from error
            done += len(block)
        if total is not None and done != total:
            raise _BrokenTransferError(f"the transfer broke off after {done:,} of {total:,} bytes")
