"""The cache: same pixels as the files, reused, refused, and never half-written."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("filelock")
Image = pytest.importorskip("PIL.Image")

from cfal_experiments.data import Cache, open_collection, parallel, prepare  # noqa: E402
from cfal_experiments.data import prepare as prepare_function  # noqa: E402
from cfal_experiments.errors import InputError  # noqa: E402
from patches import (  # noqa: E402
    SHARED,
    needs_shared_data,
    write_classes,
    write_idc,
    write_image,
    write_npz,
)

prepare_module = sys.modules[prepare_function.__module__]


def visible(folder: Path) -> list[str]:
    """What a user sees in a folder; the lock beside a cache stays."""
    return sorted(file.name for file in folder.iterdir() if not file.name.endswith(".lock"))


def test_cache_holds_the_resized_pixels_of_every_file(tmp_path: Path):
    found = open_collection(write_idc(tmp_path / "idc"))
    odd = write_image(found.file(1), 99, size=(50, 23))
    cache = prepare(open_collection(tmp_path / "idc"), tmp_path / "cache", 32)
    assert cache.images.shape == (16, 32, 32, 3)
    assert cache.images.dtype == np.uint8
    assert not cache.images.flags.writeable
    with Image.open(odd) as image:
        expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(cache.images[1], expected)
    np.testing.assert_array_equal(cache.labels, found.labels)
    np.testing.assert_array_equal(cache.groups, found.groups)
    np.testing.assert_array_equal(cache.paths, found.paths)
    assert cache.class_names == ("negative", "positive")
    assert (cache.split, cache.unreadable) == (None, ())
    assert visible(tmp_path) == ["cache", "idc"]


def test_unreadable_files_are_left_out_and_named(tmp_path: Path):
    folder = write_classes(tmp_path / "crc", {"ADI": 3, "TUM": 3})
    whole = {path.stem: np.asarray(Image.open(path)) for path in sorted(folder.glob("*/*.tif"))}
    truncated = folder / "ADI" / "ADI-1.tif"
    truncated.write_bytes(truncated.read_bytes()[:300])
    (folder / "TUM" / "TUM-0.tif").write_bytes(b"")
    cache = prepare(open_collection(folder), tmp_path / "cache", 16)
    assert [path for path, _ in cache.unreadable] == ["ADI/ADI-1.tif", "TUM/TUM-0.tif"]
    assert all(reason and str(folder) not in reason for _, reason in cache.unreadable)
    assert cache.labels.tolist() == [0, 0, 1, 1]
    for image, path in zip(cache.images, cache.paths, strict=True):
        np.testing.assert_array_equal(image, whole[Path(path).stem])


def test_gaps_are_closed_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parallel, "CHUNK", 3)
    monkeypatch.setattr(prepare_module, "MOVED", 3)
    folder = write_classes(tmp_path / "crc", {"ADI": 10, "TUM": 10}, ".png")
    for number in (0, 3, 4, 9):
        (folder / "ADI" / f"ADI-{number}.png").write_bytes(b"x")
    cache = prepare(open_collection(folder), tmp_path / "cache", 16, workers=2)
    assert len(cache) == 16
    for image, path in zip(cache.images, cache.paths, strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(folder / path)))


def test_grey_and_transparent_files_become_rgb(tmp_path: Path):
    for name, mode in (("A", "L"), ("B", "RGBA"), ("C", "P")):
        path = write_image(tmp_path / "in" / name / "x.png", size=(8, 8))
        with Image.open(path) as image:
            image.convert(mode).save(path)
    cache = prepare(open_collection(tmp_path / "in"), tmp_path / "cache", 8)
    assert cache.images.shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(cache.images[0, ..., 0], cache.images[0, ..., 2])


def test_npz_keeps_its_bytes_at_its_own_size_and_its_parts(tmp_path: Path):
    file = write_npz(tmp_path / "pathmnist.npz", {"train": 300, "val": 9, "test": 20})
    cache = prepare(open_collection(file), tmp_path / "cache", 12, workers=2)
    with np.load(file) as arrays:
        expected = [arrays[f"{part}_images"] for part in ("train", "val", "test")]
    np.testing.assert_array_equal(cache.images, np.concatenate(expected))
    assert cache.split.tolist() == ["train"] * 300 + ["validation"] * 9 + ["test"] * 20
    larger = prepare(open_collection(file), tmp_path / "larger", 20, resampling="nearest")
    assert larger.images.shape == (329, 20, 20, 3)


def test_many_files_are_decoded_by_processes_alike(tmp_path: Path, monkeypatch):
    folder = write_classes(tmp_path / "crc", {"ADI": 5, "TUM": 5}, ".png")
    (folder / "TUM" / "TUM-4.png").write_bytes(b"x")
    found = open_collection(folder)
    threads = prepare(found, tmp_path / "threads", 8)
    monkeypatch.setattr(parallel, "PROCESSES_FROM", 1)
    monkeypatch.setattr(parallel, "CHUNK", 4)
    done = []
    processes = prepare(found, tmp_path / "processes", 8, workers=2, on_images=done.append)
    np.testing.assert_array_equal(threads.images, processes.images)
    assert threads.unreadable == processes.unreadable
    assert done == [4, 4, 2]


def test_same_settings_reuse_the_cache_and_others_say_what_differs(tmp_path: Path, monkeypatch):
    folder = write_classes(tmp_path / "crc", {"ADI": 2, "TUM": 2}, ".png")
    first = prepare(open_collection(folder), tmp_path / "cache", 8)
    written = (tmp_path / "cache" / "images.u8").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_write", lambda *_: pytest.fail("decoded again"))
        again = prepare(open_collection(folder), tmp_path / "cache", 8)
    np.testing.assert_array_equal(first.images, again.images)
    assert (tmp_path / "cache" / "images.u8").stat().st_mtime_ns == written
    with pytest.raises(InputError, match="size 8 there, 9 wanted; resampling bilinear there, box"):
        prepare(open_collection(folder), tmp_path / "cache", 9, resampling="box")
    write_image(folder / "ADI" / "added.png")
    changed = open_collection(folder)
    with pytest.raises(InputError, match="made from other or changed images"):
        prepare(changed, tmp_path / "cache", 8)
    assert len(Cache.open(tmp_path / "cache")) == 4
    assert len(prepare(changed, tmp_path / "cache", 8, overwrite=True)) == 5


def test_what_is_no_cache_is_left_alone(tmp_path: Path):
    found = open_collection(write_classes(tmp_path / "crc", {"ADI": 1, "TUM": 1}, ".png"))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="exists and is not a cache"):
            prepare(found, tmp_path / "precious", 8, overwrite=overwrite)
    assert (tmp_path / "precious" / "thesis.txt").exists()
    for arguments, message in [
        ({"size": 0}, "size 0 is not positive"),
        ({"resampling": "cubic"}, "resampling 'cubic' is unknown; use bilinear"),
    ]:
        with pytest.raises(InputError, match=message):
            prepare(found, tmp_path / "new", **arguments)
    with pytest.raises(InputError, match="none of 2 images could be read"):
        for path in (tmp_path / "crc").glob("*/*"):
            path.write_bytes(b"x")
        prepare(open_collection(tmp_path / "crc"), tmp_path / "new", 8)
    assert visible(tmp_path) == ["crc", "precious"]


@pytest.mark.parametrize("where", ["before", "within"])
def test_full_disk_leaves_no_cache(tmp_path: Path, monkeypatch, where: str):
    found = open_collection(write_classes(tmp_path / "crc", {"ADI": 2, "TUM": 2}, ".png"))
    if where == "before":
        usage = prepare_module.shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(prepare_module.shutil, "disk_usage", lambda _: usage)
    else:

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(prepare_module, "_put", full)
    with pytest.raises(InputError, match="the disk is too full for a cache of"):
        prepare(found, tmp_path / "cache", 8)
    assert visible(tmp_path) == ["crc"]


def test_full_disk_while_replacing_keeps_the_previous_cache(tmp_path: Path, monkeypatch):
    found = open_collection(write_classes(tmp_path / "crc", {"ADI": 2, "TUM": 2}, ".png"))
    before = prepare(found, tmp_path / "cache", 8)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(prepare_module, "_put", full)
    with pytest.raises(InputError, match="too full"):
        prepare(found, tmp_path / "cache", 9, overwrite=True)
    np.testing.assert_array_equal(Cache.open(tmp_path / "cache").images, before.images)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupt_leaves_no_cache_and_the_next_run_makes_it(tmp_path: Path, number: int):
    folder = write_classes(tmp_path / "crc", {"ADI": 3, "TUM": 3}, ".png")
    code = (
        "import signal, sys, time\n"
        # A job in the background of a shell begins with interrupts ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from cfal_experiments.data import open_collection, prepare\n"
        "def stall(_):\n"
        "    print('half', flush=True)\n"
        "    time.sleep(60)\n"
        "prepare(open_collection(sys.argv[1]), sys.argv[2], 8, on_images=stall)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "cache")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout.readline() == b"half\n"
    process.send_signal(number)
    process.wait(timeout=30)
    process.stdout.close()
    assert not (tmp_path / "cache").exists()
    if number == signal.SIGINT:
        assert visible(tmp_path) == ["crc"]
    assert len(prepare(open_collection(folder), tmp_path / "cache", 8)) == 6
    assert visible(tmp_path) == ["cache", "crc"]


def test_two_runs_at_once_make_one_cache(tmp_path: Path):
    folder = write_classes(tmp_path / "crc", {"ADI": 3, "TUM": 3}, ".png")
    code = (
        "import sys\n"
        "from cfal_experiments.data import open_collection, prepare\n"
        "print(len(prepare(open_collection(sys.argv[1]), sys.argv[2], 8)))\n"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "cache")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    assert [run.communicate(timeout=60)[0] for run in runs] == [b"6\n", b"6\n"]
    assert [run.returncode for run in runs] == [0, 0]


def test_damaged_caches_are_named(tmp_path: Path):
    found = open_collection(write_classes(tmp_path / "crc", {"ADI": 2, "TUM": 2}, ".png"))
    folder = tmp_path / "cache"
    with pytest.raises(InputError, match="no cache; make one with 'cfal data prepare"):
        Cache.open(folder)
    for damage, message in [
        (lambda: os.truncate(folder / "images.u8", 100), "images.u8 has 100 bytes"),
        (lambda: os.truncate(folder / "index.npz", 50), "damaged cache"),
        (lambda: (folder / "index.npz").unlink(), "damaged cache"),
        (lambda: (folder / "header.json").write_text("{"), "damaged cache"),
        (lambda: (folder / "header.json").write_text(json.dumps([])), "not a cache of this"),
    ]:
        prepare(found, folder, 8, overwrite=True)
        damage()
        with pytest.raises(InputError, match=message) as caught:
            Cache.open(folder)
        assert "\n" not in str(caught.value)


def test_classes_of_a_model_are_matched_by_name(tmp_path: Path):
    found = open_collection(write_classes(tmp_path / "crc", {"LYM": 1, "TUM": 2}, ".png"))
    cache = prepare(found, tmp_path / "cache", 8)
    renumbered = cache.with_classes(["ADI", "TUM", "LYM"])
    assert renumbered.labels.tolist() == [2, 1, 1]
    assert renumbered.counts() == [0, 2, 1]
    with pytest.raises(InputError, match="class 'LYM' is none of the model's .ADI, TUM."):
        cache.with_classes(["ADI", "TUM"])


@needs_shared_data
def test_full_size_tiles_become_a_cache(tmp_path: Path):
    tiles = sorted((SHARED / "data" / "nct_crc_tiles").glob("*.*"))
    lines = [f"{tile},{tile.stem.split('__')[1].split('-')[0]}" for tile in tiles]
    (tmp_path / "tiles.csv").write_text("\n".join(["path,label", *lines]))
    cache = prepare(open_collection(tmp_path / "tiles.csv"), tmp_path / "cache", 112)
    assert cache.images.shape == (28, 112, 112, 3)
    assert cache.unreadable == ()
    assert set(cache.class_names) >= {"ADI", "BACK", "STR", "TUM"}
