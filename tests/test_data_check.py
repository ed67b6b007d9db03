"""`cfal data check` and `prepare` on data sets with known faults."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("requests")
Image = pytest.importorskip("PIL.Image")

from cfal_experiments.data import Cache, Split, commands, open_collection, splits  # noqa: E402
from cfal_experiments.data.check import Duplicates, check  # noqa: E402
from cfal_experiments.errors import InputError  # noqa: E402
from patches import (  # noqa: E402
    SHARED,
    needs_shared_data,
    write_classes,
    write_idc,
    write_image,
    write_npz,
)


def test_good_data_have_no_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_idc(tmp_path, patients=3)
    findings = check(open_collection(tmp_path))
    assert findings.counts == {"negative": 6, "positive": 6}
    assert findings.patients == 3
    assert (findings.problems(), findings.notices()) == ([], [])
    assert commands.check(str(tmp_path), strict=True) == 0
    assert "problems: none" in capsys.readouterr().out


def test_damaged_and_odd_sized_files_are_named(tmp_path: Path):
    found = open_collection(write_idc(tmp_path, patients=3))
    truncated = found.file(0)
    truncated.write_bytes(truncated.read_bytes()[:500])
    write_image(found.file(1), 99, (50, 12))
    findings = check(found)
    assert [path for path, _ in findings.unreadable] == [found.paths[0]]
    assert findings.odd_sizes == ((str(found.paths[1]), 50, 12),)
    assert findings.problems() == ["1 unreadable"]
    assert findings.notices() == ["1 are not 50 x 50"]


def test_same_pixels_are_found_in_another_format(tmp_path: Path):
    write_classes(tmp_path, {"ADI": 3, "TUM": 3}, ".png")
    with Image.open(tmp_path / "ADI" / "ADI-1.png") as image:
        image.save(tmp_path / "ADI" / "copy.tif")
        image.save(tmp_path / "TUM" / "other.bmp")
    findings = check(open_collection(tmp_path))
    paths = ("ADI/ADI-1.png", "ADI/copy.tif", "TUM/other.bmp")
    assert findings.duplicates == (Duplicates(paths, (), ("ADI", "TUM")),)
    assert findings.problems() == ["1 duplicated with different labels"]
    (tmp_path / "TUM" / "other.bmp").unlink()
    findings = check(open_collection(tmp_path))
    assert (findings.problems(), findings.notices()) == ([], ["1 duplicated within their class"])


def test_images_of_equal_bytes_and_other_shape_differ(tmp_path: Path):
    for number, shape in enumerate(((4, 9), (9, 4), (6, 6))):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(tmp_path / "a" / f"{number}.png")
    write_classes(tmp_path, {"b": 3}, ".png", seed=5)
    assert check(open_collection(tmp_path)).duplicates == ()


def test_leaks_between_the_parts_of_the_source(tmp_path: Path):
    write_classes(tmp_path / "train", {"ADI": 3, "TUM": 3})
    write_classes(tmp_path / "test", {"ADI": 3, "TUM": 3}, seed=10)
    shutil.copy(tmp_path / "train" / "ADI" / "ADI-0.tif", tmp_path / "test" / "ADI" / "leak.tif")
    findings = check(open_collection(tmp_path))
    assert findings.parts["test"] == {"ADI": 4, "TUM": 3}
    assert findings.duplicates[0].parts == ("test", "train")
    assert findings.problems() == ["1 duplicated across parts of the split"]


def test_patients_in_several_parts_of_a_run_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = write_idc(tmp_path / "idc", patients=4)
    found = open_collection(folder)
    leaking = Split(np.array([0, 4, 5]), np.array([6, 7]), np.array([1, 8, 9]))
    leaking.save(tmp_path / "split.csv", found.paths)
    result = tmp_path / "findings.json"
    assert commands.check(str(folder), split=str(tmp_path / "split.csv"), json=str(result)) == 1
    written = json.loads(result.read_text())
    assert written["overlap"] == [["10", ["test", "train"]], ["11", ["train", "validation"]]]
    assert written["problems"] == ["2 patients in more than one part"]
    assert "10: test, train" in capsys.readouterr().out
    safe = splits.make("patient", found.labels, found.groups)
    safe.save(tmp_path / "split.csv", found.paths)
    assert commands.check(str(folder), split=str(tmp_path / "split.csv")) == 0


def test_classes_too_small_to_split_are_problems(tmp_path: Path):
    write_classes(tmp_path / "few", {"ADI": 1, "TUM": 3})
    write_classes(tmp_path / "one", {"ADI": 3})
    few, one = (check(open_collection(tmp_path / name)).problems() for name in ("few", "one"))
    assert few == ["class ADI has 1, at least 3 are needed"]
    assert one == ["one class only"]


def test_npz_is_checked_image_by_image(tmp_path: Path):
    file = write_npz(tmp_path / "pathmnist.npz", {"train": 27, "test": 18})
    arrays = dict(np.load(file))
    arrays["test_images"][9] = arrays["train_images"][0]
    np.savez_compressed(file, **arrays)
    findings = check(open_collection(file))
    assert findings.duplicates[0].paths == ("train/0", "test/9")
    assert findings.problems() == ["1 duplicated across parts of the split"]


def test_notices_count_when_strict(tmp_path: Path):
    found = open_collection(write_idc(tmp_path))
    write_image(found.file(0), 99, (50, 20))
    assert commands.check(str(tmp_path)) == 0
    assert commands.check(str(tmp_path), strict=True) == 1


def test_prepare_prints_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_classes(tmp_path / "crc", {"ADI": 3, "TUM": 3})
    (folder / "ADI" / "ADI-2.tif").write_bytes(b"x")
    assert commands.prepare(str(folder), str(tmp_path / "cache"), size=8) == 0
    printed = capsys.readouterr().out
    assert "5 images of 8 x 8" in printed
    assert "ADI 2, TUM 3" in printed
    assert "left out ADI/ADI-2.tif" in printed
    assert len(Cache.open(tmp_path / "cache")) == 5


def test_unwritable_report_is_named(tmp_path: Path):
    write_idc(tmp_path / "idc")
    with pytest.raises(InputError, match="another file with --json"):
        commands.check(str(tmp_path / "idc"), json=str(tmp_path / "missing" / "x.json"))


def test_commands_as_a_user_types_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main = pytest.importorskip("cfal_experiments.cli.main").main
    found = open_collection(write_idc(tmp_path / "idc"))
    write_image(found.file(0), 99, (50, 20))
    folder, cache = str(tmp_path / "idc"), str(tmp_path / "cache")
    assert main(["data", "check", folder]) == 0
    assert main(["data", "check", folder, "--strict"]) == 1
    assert main(["data", "prepare", folder, "--to", cache, "--size", "8"]) == 0
    capsys.readouterr()
    for arguments, message in [
        (["prepare", folder, "--to", cache, "--size", "9"], "size 8 there, 9 wanted"),
        (["prepare", folder, "--to", cache, "--size", "large"], "size"),
        (["prepare", folder], "to"),
        (["check", str(tmp_path / "none")], "no such file or folder"),
        (["fetch", "crc", "--to", cache, "--keep-archive"], "archive 'crc' is unknown"),
    ]:
        assert main(["data", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert message in captured.err


def test_data_commands_need_no_torch():
    code = (
        "import sys; import cfal_experiments.data.commands;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'sklearn', 'lightning')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@needs_shared_data
def test_odd_sizes_of_the_real_patches_are_those_of_their_manifest():
    found = open_collection(SHARED / "data" / "idc")
    with (SHARED / "data" / "idc" / "manifest.csv").open(newline="") as stream:
        sizes = {
            row["path"]: (int(row["width"]), int(row["height"])) for row in csv.DictReader(stream)
        }
    findings = check(found)
    assert findings.unreadable == ()
    expected = {path: size for path, size in sizes.items() if size != (50, 50)}
    assert {path: (w, h) for path, w, h in findings.odd_sizes} == expected
    assert findings.problems() == []
