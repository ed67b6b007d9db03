"""What `cfal data check`, `fetch` and `prepare` do; none of them imports torch.

Every function returns the exit status. An `InputError` means status 2, printed by the caller.
"""

from __future__ import annotations

import json as json_module
import os
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cfal_experiments.data.check import Findings
from cfal_experiments.data.check import check as run_check
from cfal_experiments.data.fetch import Report, find
from cfal_experiments.data.fetch import fetch as run_fetch
from cfal_experiments.data.layouts import open_collection
from cfal_experiments.data.partition import Split
from cfal_experiments.data.prepare import prepare as run_prepare
from cfal_experiments.errors import InputError
from cfal_experiments.progress import bar

NAMED = 10  # single cases that are printed; --json has all


def check(
    path: str,
    layout: str = "auto",
    split: str | None = None,
    json: str | None = None,
    strict: bool = False,
    workers: int | None = None,
) -> int:
    """Look for damaged, odd-sized, duplicate or leaking images.

    Exit status 1 says that there are problems: unreadable images, duplicates across the parts of
    the split or with different labels, patients in more than one part, classes too small to split.
    Odd sizes and duplicates within a class are notices, which count with --strict only.

    Args:
        path: folder, .npz or CSV manifest.
        layout: auto, idc, folders, npz or manifest.
        split: split.csv of a run whose parts to check, instead of those of the source.
        json: file to write everything to, each single case named.
        strict: let notices count as problems.
        workers: how many images to decode at a time; all cores by default.
    """
    collection = open_collection(path, layout)
    parts = None
    if split is not None:
        parts = np.full(len(collection), "", dtype="<U10")
        for name, rows in Split.load(split, collection.paths).parts().items():
            parts[rows] = name
    with bar(len(collection), "checking images", "image") as progress:
        findings = run_check(collection, parts, workers=workers, on_images=progress.update)
    if json is not None:
        _write(Path(json), json_module.dumps(findings.as_dict(), indent=1))
    print(table(findings))
    bad = findings.problems() + (findings.notices() if strict else [])
    return 1 if bad else 0


def fetch(name: str, to: str, keep_archive: bool = False) -> int:
    """Download a public archive into a folder, and unpack it.

    An interrupted download goes on where it stopped when the command is given again.

    Args:
        name: nct-crc-he-100k, crc-val-he-7k, pathmnist, pathmnist-64, pathmnist-128, pathmnist-224
            or idc.
        to: folder that gets the images.
        keep_archive: keep the .zip after unpacking.
    """
    archive = find(name)
    print(f"{archive.file}: {archive.about}")
    with _Bars() as bars:
        target, md5 = run_fetch(archive, to, keep_archive=keep_archive, report=bars)
    if md5 is None:
        print(f"{target}: there already, left as it is")
    elif archive.md5:
        print(f"MD5 {md5}, as recorded by {archive.md5[md5]}")
    else:
        print(f"MD5 {md5}; none is published to compare it with")
    print(f"ready: {target}")
    return 0


def prepare(
    path: str,
    to: str,
    size: int = 32,
    resampling: str = "bilinear",
    layout: str = "auto",
    workers: int | None = None,
    overwrite: bool = False,
) -> int:
    """Decode and resize all images once into a cache that training maps into memory.

    A cache with the same settings is reused. Images that cannot be read are left out and named.

    Args:
        path: folder, .npz or CSV manifest.
        to: folder of the cache.
        size: height and width in pixels; images that are not square are stretched.
        resampling: bilinear, bicubic, lanczos, box or nearest.
        layout: auto, idc, folders, npz or manifest.
        workers: how many images to decode at a time; all cores by default.
        overwrite: replace a cache with other settings.
    """
    collection = open_collection(path, layout)
    with bar(len(collection), "decoding images", "image") as progress:
        cache = run_prepare(
            collection,
            to,
            size,
            resampling=resampling,
            workers=workers,
            overwrite=overwrite,
            on_images=progress.update,
        )
    counts = zip(cache.class_names, cache.counts(), strict=True)
    print(f"{to}: {len(cache):,} images of {size} x {size}, {cache.images.nbytes / 2**20:,.0f} MiB")
    print("  " + ", ".join(f"{name} {count:,}" for name, count in counts))
    for line in _some([f"{name}: {reason}" for name, reason in cache.unreadable]):
        print(f"  left out {line}")
    return 0


def table(findings: Findings) -> str:
    """The findings for people: counts first, then problems, then notices."""
    patients = "" if findings.patients is None else f", {findings.patients:,} patients"
    total = sum(findings.counts.values())
    lines = [f"{findings.root}: {total:,} images (layout {findings.layout}){patients}", ""]
    columns = {"all": findings.counts, **findings.parts}
    width = max(5, *map(len, findings.counts))
    lines.append(f"  {'class':<{width}}" + "".join(f"{name:>12}" for name in columns))
    for name in findings.counts:
        cells = "".join(f"{counts[name]:>12,}" for counts in columns.values())
        lines.append(f"  {name:<{width}}{cells}")
    cases = {
        "unreadable": [f"{path}: {reason}" for path, reason in findings.unreadable],
        "patient in several parts": [
            f"{patient}: {', '.join(parts)}" for patient, parts in findings.overlap
        ],
        "same pixels": [
            f"{' = '.join(group.paths)}"
            + (f" [{', '.join(group.parts)}]" if group.parts else "")
            + (f" (labelled {', '.join(group.classes)})" if len(group.classes) > 1 else "")
            for group in findings.duplicates
        ],
        "odd size": [f"{path}: {width} x {height}" for path, width, height in findings.odd_sizes],
    }
    for title, entries in cases.items():
        if entries:
            lines += ["", f"  {title} ({len(entries):,})"]
            lines += [f"    {entry}" for entry in _some(entries)]
    problems, notices = findings.problems(), findings.notices()
    lines += ["", f"problems: {'; '.join(problems) or 'none'}"]
    if notices:
        lines.append(f"notices: {'; '.join(notices)}")
    return "\n".join(lines)


class _Bars(Report):
    """Progress bars, one per phase of a download."""

    def __init__(self) -> None:
        self.current: tqdm | None = None

    def begin(self, what: str, total: int | None, done: int) -> None:
        self._close()
        self.current = bar(total, what, "B", initial=done, unit_scale=True)

    def advance(self, count: int) -> None:
        self.current.update(count)

    def note(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self.current is not None:
            self.current.close()


def _some(entries: list[str]) -> list[str]:
    left = len(entries) - NAMED
    return entries[:NAMED] + ([f"... and {left:,} more"] if left > 0 else [])


def _write(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, file)
    except OSError as error:
        raise InputError(
            f"{file}: {error.strerror or error}; give another file with --json"
        ) from error
