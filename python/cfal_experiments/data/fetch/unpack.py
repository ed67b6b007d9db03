"""Unpack a .zip from the internet: nothing outside its folder, nothing half-done."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from cfal_experiments.data.fetch.download import RESERVE, Report
from cfal_experiments.data.layouts.folders import SUFFIXES
from cfal_experiments.errors import InputError

BLOCK = 2**20


def unpack(file: Path, target: Path, images: int | None, report: Report) -> None:
    """Unpack `file` into the folder `target`, which appears when everything is there.

    A single folder that holds all of the archive is stepped over: its contents become `target`'s.
    The archive's own checksums are compared on the way.

    Args:
        file: the .zip.
        target: folder that does not exist yet.
        images: how many image files there must be, or None.
        report: is told about the progress.

    Raises:
        InputError: no .zip, damaged, with names that lead out of the folder, with another number of
            images, or the disk is too full. Nothing is left of what was unpacked.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    total = 0
    try:
        with zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _require_safe(file, members)
            _require_images(file, members, images)
            total = sum(member.file_size for member in members)
            if shutil.disk_usage(target.parent).free < total + RESERVE:
                raise _full(target, total)
            report.begin("unpacking", total, 0)
            for member in members:
                _extract(archive, member, partial / member.filename, report)
        if hasattr(os, "sync"):  # the bytes before the name, for a hundred thousand files at once
            os.sync()
        only = list(partial.iterdir())
        whole = only[0] if len(only) == 1 and only[0].is_dir() else partial
        whole.rename(target)
    # NotImplementedError is how zipfile refuses a compression or version that it does not know.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InputError(f"{file}: damaged ({error}); delete it and fetch again") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(target, total) from error
        raise InputError(
            f"{error.filename or target}: {error.strerror or error}; choose another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, to: Path, report: Report) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, to.open("xb") as stream:
        while block := source.read(BLOCK):
            stream.write(block)
            report.advance(len(block))


def _require_safe(file: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse the whole archive for one name that leads elsewhere: no honest one has such a name."""
    for member in members:
        name = PurePosixPath(member.filename)
        is_link = stat.S_ISLNK(member.external_attr >> 16)
        foreign = "\\" in member.filename or ":" in member.filename
        if name.is_absolute() or ".." in name.parts or is_link or foreign:
            raise InputError(
                f"{file}: holds {member.filename!r}, which could write outside the folder; fetch "
                "it from a source that you trust"
            )


def _require_images(file: Path, members: list[zipfile.ZipInfo], images: int | None) -> None:
    found = sum(member.filename.lower().endswith(SUFFIXES) for member in members)
    if images is not None and found != images:
        raise InputError(
            f"{file}: holds {found:,} images, {images:,} are recorded; delete it and fetch again"
        )


def _full(target: Path, total: int) -> InputError:
    return InputError(
        f"{target.parent}: unpacking needs {total / 1e9:,.2f} GB; make room or choose another disk "
        "with --to"
    )
