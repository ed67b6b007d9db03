"""What is found on disk: layouts, labels, patients, and messages for what cannot be used."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL.Image")

from cfal_experiments.data import open_collection  # noqa: E402
from cfal_experiments.data.layouts import npz  # noqa: E402
from cfal_experiments.errors import InputError  # noqa: E402
from patches import (  # noqa: E402
    SHARED,
    needs_shared_data,
    write_classes,
    write_idc,
    write_image,
    write_npz,
)


def test_idc_folder_gives_labels_and_patients(tmp_path: Path):
    write_idc(tmp_path, patients=2, per_class=1)
    (tmp_path / "notes.txt").write_text("not a patient")
    found = open_collection(tmp_path)
    assert found.layout == "idc"
    assert found.class_names == ("negative", "positive")
    assert found.labels.tolist() == [0, 1, 0, 1]
    assert found.groups.tolist() == ["10", "10", "11", "11"]
    assert found.paths[1] == "10/1/10_idx5_x0_y1_class1.png"
    assert found.file(1).is_file()


def test_class_folders_are_named_and_sorted(tmp_path: Path):
    write_classes(tmp_path, {"TUM": 2, "ADI": 1})
    found = open_collection(tmp_path)
    assert (found.layout, found.class_names) == ("folders", ("ADI", "TUM"))
    assert found.counts() == [1, 2]
    assert found.groups is None
    assert found.split is None


def test_class_folders_called_0_and_1_are_not_taken_for_patients(tmp_path: Path):
    write_classes(tmp_path, {"0": 2, "1": 2}, ".png")
    found = open_collection(tmp_path)
    assert (found.layout, found.class_names) == ("folders", ("0", "1"))


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test"), ("NCT-CRC-HE-100K", "CRC-VAL-HE-7K")]
)
def test_folders_of_parts_say_the_split(tmp_path: Path, train: str, test: str):
    write_classes(tmp_path / train, {"ADI": 2, "TUM": 3})
    write_classes(tmp_path / test, {"ADI": 1, "TUM": 1})
    found = open_collection(tmp_path)
    assert found.class_names == ("ADI", "TUM")
    counts = {part: int((found.split == part).sum()) for part in ("train", "test")}
    assert counts == {"train": 5, "test": 2}
    assert found.file(0).is_file()


def test_manifest_gives_classes_in_the_order_of_numbers(tmp_path: Path):
    file = tmp_path / "list.csv"
    file.write_text("label,path,patient,split,stain\n10,a.png,p,test,x\n2,b/c.png,q,Val,y\n")
    found = open_collection(file)
    assert found.class_names == ("2", "10")
    assert found.labels.tolist() == [1, 0]
    assert found.groups.tolist() == ["p", "q"]
    assert found.split.tolist() == ["test", "validation"]
    assert found.file(1) == tmp_path / "b" / "c.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,lbl\na.png,0\n", "no column 'label' .found: path, lbl.; the first line must name"),
        ("", "no column 'path' .found: none."),
        ("path,label\n", "no image is listed"),
        ("path,label\na.png,0\nb.png,\n", "line 3 has no label"),
        ("path,label,split\na.png,0,hold-out\n", "line 2 has split 'hold-out'; use train"),
        ("path,label\na.png,0\na.png,1\n", "a.png is listed twice"),
        ('path,label\n"a.png,0\n', "no CSV file"),
    ],
)
def test_manifest_that_cannot_be_used_is_named(tmp_path: Path, text: str, message: str):
    file = tmp_path / "list.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        open_collection(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_npz_gives_the_parts_and_the_tissue_names(tmp_path: Path):
    file = write_npz(tmp_path / "pathmnist.npz", {"train": 18, "val": 9, "test": 9})
    found = open_collection(file)
    assert found.class_names == npz.PATHMNIST_CLASSES
    assert found.paths[18] == "validation/0"
    assert (found.split == "test").sum() == 9
    rows, images = zip(*npz.stream(file), strict=True)
    assert rows == (0, 18, 27)
    with np.load(file) as arrays:
        np.testing.assert_array_equal(images[2], arrays["test_images"])


def test_npz_is_streamed_in_pieces(tmp_path: Path):
    file = write_npz(tmp_path / "x.npz", {"train": 2 * npz.STREAMED_ROWS + 3}, size=4, classes=2)
    pieces = list(npz.stream(file))
    assert [first for first, _ in pieces] == [0, npz.STREAMED_ROWS, 2 * npz.STREAMED_ROWS]
    with np.load(file) as arrays:
        np.testing.assert_array_equal(
            np.concatenate([images for _, images in pieces]), arrays["train_images"]
        )


def test_npz_with_a_flipped_byte_is_damaged(tmp_path: Path):
    file = write_npz(tmp_path / "x.npz", {"train": 600}, size=4, classes=2)
    with zipfile.ZipFile(file) as archive:
        member = archive.getinfo("train_images.npy")
    data = bytearray(file.read_bytes())
    data[member.header_offset + member.compress_size // 2] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(InputError, match="damaged|ends early"):
        list(npz.stream(file))


def test_npz_with_pickled_labels_is_refused(tmp_path: Path):
    file = tmp_path / "evil.npz"
    images = np.zeros((2, 4, 4, 3), np.uint8)
    np.savez(file, train_images=images, train_labels=np.array([0, "x"], dtype=object))
    with pytest.raises(InputError, match="train_labels cannot be read"):
        open_collection(file)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, "no array train_images"),
        ({"train_images": np.zeros((2, 4, 4), np.uint8)}, "train_images has shape"),
        ({"train_images": np.zeros((2, 4, 4, 3))}, "dtype float64"),
        ({"train_images": np.zeros((2, 4, 4, 3), np.uint8)}, "without train_labels"),
        (
            {"train_images": np.zeros((2, 4, 4, 3), np.uint8), "train_labels": np.zeros(3, int)},
            "train_labels has shape",
        ),
    ],
)
def test_npz_of_another_form_is_named(tmp_path: Path, arrays: dict, message: str):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=message):
        open_collection(tmp_path / "x.npz")


def test_what_is_no_data_set_is_named_with_a_remedy(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.npz").write_bytes(b"no zip")
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "texts" / "cats").mkdir(parents=True)
    write_image(tmp_path / "flat" / "a.png")
    write_idc(tmp_path / "outer" / "IDC_regular", patients=1)
    write_classes(tmp_path / "deep" / "inner", {"A": 1, "B": 1})
    for name, layout, message in [
        ("missing", "auto", "no such file or folder"),
        ("empty", "auto", "empty folder"),
        ("empty", "idc", "empty folder; unpack"),
        ("x.npz", "auto", "no .npz file"),
        ("x.txt", "auto", "not a data set"),
        ("x.txt", "folders", "not a folder"),
        ("texts", "auto", "no image in any class folder; expected <class>/<image>"),
        ("texts", "idc", "not an IDC folder"),
        ("flat", "auto", "need a CSV manifest"),
        ("outer", "idc", "did you mean .*IDC_regular"),
        ("outer", "auto", "did you mean .*IDC_regular"),
        ("deep", "auto", "did you mean .*inner"),
        ("flat", "zip", "layout 'zip' is unknown"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            open_collection(tmp_path / name, layout)
        assert "\n" not in str(caught.value)


def test_fingerprint_follows_what_matters(tmp_path: Path):
    first = write_classes(tmp_path / "a", {"ADI": 2, "TUM": 2}, ".png")
    before = open_collection(first).fingerprint()
    copy = write_classes(tmp_path / "b", {"ADI": 2, "TUM": 2}, ".png")
    assert open_collection(copy).fingerprint() == before
    write_image(copy / "ADI" / "ADI-0.png", 9, (17, 16))
    assert open_collection(copy).fingerprint() != before
    (first / "ADI" / "ADI-0.png").rename(first / "TUM" / "ADI-0.png")
    assert open_collection(first).fingerprint() != before


@needs_shared_data
def test_real_collections_are_recognised():
    idc = open_collection(SHARED / "data" / "idc")
    assert (idc.layout, idc.counts(), len(np.unique(idc.groups))) == ("idc", [5638, 2086], 195)
    listed = open_collection(SHARED / "data" / "idc" / "manifest.csv")
    assert sorted(listed.paths) == sorted(idc.paths)
    pathmnist = open_collection(SHARED / "data" / "pathmnist_718" / "pathmnist_test718.npz")
    assert pathmnist.class_names == npz.PATHMNIST_CLASSES
    assert pathmnist.counts() == [147, 78, 26, 60, 112, 60, 85, 28, 122]
