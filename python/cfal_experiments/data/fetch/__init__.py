"""Public archives: downloaded so that a cut connection costs nothing, checked, unpacked."""

from __future__ import annotations

from pathlib import Path

from cfal_experiments.data.fetch.archives import ARCHIVES, Archive
from cfal_experiments.data.fetch.download import Report, download
from cfal_experiments.data.fetch.unpack import unpack
from cfal_experiments.errors import InputError


def find(name: str) -> Archive:
    """The archive of that name.

    Raises:
        InputError: there is none.
    """
    if name not in ARCHIVES:
        raise InputError(f"archive {name!r} is unknown; choose from {', '.join(ARCHIVES)}")
    return ARCHIVES[name]


def fetch(
    archive: Archive,
    to: str | Path,
    *,
    keep_archive: bool = False,
    report: Report | None = None,
) -> tuple[Path, str | None]:
    """Bring an archive into the folder `to`, unpacked if it is a .zip.

    What is there already is left as it is. An interrupted download goes on where it stopped, an
    interrupted unpacking begins again; the result appears under its name when it is whole.

    Args:
        archive: what to fetch.
        to: folder, made where missing.
        keep_archive: keep the .zip beside what it held.
        report: is told about the progress.

    Returns:
        The folder or file, and the MD5 that was found, or None where nothing was downloaded.

    Raises:
        InputError: no connection, a wrong checksum, a damaged archive, or a full disk.

    Example:
        >>> fetch(find("crc-val-he-7k"), "data")
        (PosixPath('data/CRC-VAL-HE-7K'), '2fd1651b4f94ebd818ebf90ad2b6ce06')
    """
    to = Path(to)
    report = report or Report()
    target = to / archive.target
    if target.exists():
        return target, None
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{to}: {error.strerror}; choose another folder with --to") from error
    file, md5 = download(archive, to, report)
    if archive.unpacked:
        unpack(file, target, archive.images, report)
        if not keep_archive:
            file.unlink()
    return target, md5
