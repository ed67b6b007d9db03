"""Download one file over HTTP, going on after every interruption.

What has arrived lies in `<file>.part`, and beside it in `<file>.part.json` what the server said of
the file, so that a later run can tell whether the rest still belongs to it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import requests
from filelock import FileLock
from urllib3.exceptions import HTTPError

from cfal_experiments.data.fetch.archives import Archive
from cfal_experiments.errors import InputError

ATTEMPTS = 6  # in a row that bring no byte
FIRST_PAUSE = 1.0  # seconds; doubles with every fruitless attempt
TIMEOUT = (30, 60)  # seconds without a connection, without a byte
BLOCK = 2**16  # bytes per read of the network
RESERVE = 64 * 2**20  # bytes to leave free on the disk


class Report:
    """Hears of the progress; the methods are there to be overridden."""

    def begin(self, what: str, total: int | None, done: int) -> None:
        """A phase starts: `what` (downloading, checking, unpacking) with `total` bytes."""

    def advance(self, count: int) -> None:
        """`count` more bytes of the phase are done."""

    def note(self, text: str) -> None:
        """Something to know, such as a resumption."""


@dataclass(frozen=True)
class Version:
    """What identifies a version of a file on a server.

    Attributes:
        url: its address.
        size: bytes, or None where the server does not say.
        validator: a strong ETag or a Last-Modified date, for If-Range; None where there is none.
    """

    url: str
    size: int | None
    validator: str | None

    @classmethod
    def of(cls, url: str, response: requests.Response) -> Version:
        """Read it off a response with status 200 or 206."""
        size = response.headers.get("Content-Length")
        if response.status_code == 206:
            size = _content_range(response)[1]
        tag = response.headers.get("ETag")
        if tag is None or tag.startswith("W/"):  # a weak one may not enter If-Range
            tag = response.headers.get("Last-Modified")
        return cls(url, int(size) if size is not None else None, tag)


class _Interrupted(Exception):
    """The connection failed in a way that another attempt may mend."""


def download(archive: Archive, folder: Path, report: Report) -> tuple[Path, str]:
    """Download `archive` into `folder`; returns the file and its MD5.

    A file that is there already is only checked.

    Raises:
        InputError: no connection after several attempts, a refusal by the server, a wrong size or
            checksum, or a full disk. Except after a wrong checksum, what has arrived is kept.
    """
    file = folder / archive.file
    part = folder / f"{archive.file}.part"
    with FileLock(folder / f".{archive.file}.lock"):
        if not file.exists():
            with _disk_errors(part):
                _complete(archive, part, report)
                md5 = _checked(archive, part, report)
                part.replace(file)
            _notes(part).unlink(missing_ok=True)
            return file, md5
        return file, _checked(archive, file, report)


def _complete(archive: Archive, part: Path, report: Report) -> None:
    """Fetch until the part holds the whole file; gives up after attempts that bring nothing."""
    fruitless = 0
    with requests.Session() as session:
        # Offsets count the bytes of the file, not of a compressed transfer.
        session.headers["Accept-Encoding"] = "identity"
        while True:
            before = _size(part)
            try:
                _attempt(session, archive, part, report)
                return
            except (requests.RequestException, HTTPError, _Interrupted) as error:
                fruitless = 0 if _size(part) > before else fruitless + 1
                if fruitless == ATTEMPTS:
                    raise InputError(
                        f"{archive.url}: no answer in {ATTEMPTS} attempts ({_in_short(error)}); "
                        f"{_kept(part)}{archive.elsewhere or 'try again later'}"
                    ) from error
                report.note(f"{archive.file}: connection lost, trying again")
                time.sleep(FIRST_PAUSE * 2**fruitless if fruitless else 0)


def _attempt(session: requests.Session, archive: Archive, part: Path, report: Report) -> None:
    """One request for what is missing."""
    known, have = _read_notes(part, archive), _size(part)
    if known is None:
        have = 0
    elif have == known.size:
        return
    headers = {}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known.validator:
            headers["If-Range"] = known.validator
    with session.get(archive.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416 or (response.status_code == 206 and not have):
            part.unlink(missing_ok=True)
            raise _Interrupted("the server has another file than before")
        _require_success(archive, response)
        version = Version.of(archive.url, response)
        if archive.size is not None and version.size not in (None, archive.size):
            raise InputError(
                f"{archive.url}: the server offers {version.size:,} bytes, {archive.size:,} are "
                f"recorded; look whether the archive was replaced"
            )
        continues = response.status_code == 206
        if continues and (_content_range(response)[0] != have or version.size != known.size):
            part.unlink(missing_ok=True)
            raise _Interrupted("the server has another file than before")
        if have:
            report.note(
                f"{archive.file}: going on after {have:,} bytes"
                if continues
                else f"{archive.file}: the server cannot go on, or has another file; from the start"
            )
        have = have if continues else 0
        _require_space(part, version.size, have)
        _notes(part).write_text(json.dumps(asdict(version)), encoding="utf-8")
        report.begin("downloading", version.size, have)
        with part.open("ab" if continues else "wb") as stream:
            # What has arrived is written at once: a read that waits for a whole block loses the
            # bytes it has when the connection goes.
            while block := response.raw.read1(BLOCK):
                stream.write(block)
                report.advance(len(block))
            stream.flush()
            os.fsync(stream.fileno())
    if version.size is not None and _size(part) != version.size:
        raise _Interrupted(f"{_size(part):,} of {version.size:,} bytes arrived")


def _checked(archive: Archive, file: Path, report: Report) -> str:
    """The MD5 of a file, after comparing it with what is recorded."""
    size = _size(file)
    report.begin("checking", size, 0)
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(16 * BLOCK):
            digest.update(block)
            report.advance(len(block))
    md5 = digest.hexdigest()
    if archive.md5 and md5 not in archive.md5:
        partial = file.suffix == ".part"
        if partial:
            file.unlink()
            _notes(file).unlink(missing_ok=True)
        raise InputError(
            f"{archive.file}: MD5 {md5} instead of {' or '.join(archive.md5)}; "
            + ("it was discarded, fetch it again" if partial else f"delete {file} and fetch again")
        )
    return md5


def _require_success(archive: Archive, response: requests.Response) -> None:
    status = response.status_code
    if status in (408, 425, 429) or status >= 500:
        raise _Interrupted(f"the server answers {status}")
    if status not in (200, 206):
        raise InputError(
            f"{archive.url}: the server answers {status} {response.reason}; "
            f"{archive.elsewhere or 'look for the new address of the archive'}"
        )


def _require_space(part: Path, size: int | None, have: int) -> None:
    missing = (size or 0) - have
    free = shutil.disk_usage(part.parent).free
    if missing + RESERVE > free:
        raise InputError(
            f"{part.parent}: {missing / 1e9:,.2f} GB are to come and {free / 1e9:,.2f} GB free; "
            "make room or choose another disk with --to"
        )


@contextmanager
def _disk_errors(part: Path) -> Iterator[None]:
    try:
        yield
    except requests.RequestException:  # is an OSError, but none of the disk's
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"{part.parent}: the disk is full; {_kept(part)}free some space and fetch again"
            ) from error
        raise InputError(
            f"{error.filename or part}: {error.strerror or error}; choose another folder with --to"
        ) from error


def _content_range(response: requests.Response) -> tuple[int, int | None]:
    """First byte and total of a part; an answer without them cannot be put in its place."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not found:
        raise _Interrupted("the server sent a part without saying which")
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _read_notes(part: Path, archive: Archive) -> Version | None:
    try:
        version = Version(**json.loads(_notes(part).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return version if version.url == archive.url else None


def _notes(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _kept(part: Path) -> str:
    return f"{_size(part):,} bytes are kept in {part.name}; " if _size(part) else ""


def _in_short(error: Exception) -> str:
    """The innermost reason, on one line: libraries wrap it several times."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return " ".join(str(error).split()) or type(error).__name__
