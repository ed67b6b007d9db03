"""Splits: what may not be in two parts, what follows the seed, and what is refused."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest

from cfal_experiments.data import longtail, splits
from cfal_experiments.data.partition import Split
from cfal_experiments.errors import InputError
from patches import SHARED, needs_shared_data


def patients(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and patients; patients differ in size and in their share of class 1."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 30, count)
    groups = np.repeat([f"p{number}" for number in range(count)], sizes)
    share = np.repeat(rng.uniform(0.1, 0.6, count), sizes)
    return (rng.random(len(groups)) < share).astype(np.int64), groups


def names(labels: np.ndarray) -> np.ndarray:
    return np.array([f"folder/{row}.png" for row in range(len(labels))])


def assert_partition(split: Split, count: int) -> None:
    rows = np.concatenate(list(split.parts().values()))
    np.testing.assert_array_equal(np.sort(rows), np.arange(count))
    for part in split.parts().values():
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()


@pytest.mark.parametrize("kind", ["patient", "random", "janowczyk", "auto"])
def test_same_seed_same_split_and_another_seed_another(kind: str):
    labels, groups = patients(60)
    first, again, other = (splits.make(kind, labels, groups, seed=seed) for seed in (1, 1, 2))
    assert_partition(first, len(labels))
    for name, rows in first.parts().items():
        np.testing.assert_array_equal(rows, again.parts()[name])
    assert not np.array_equal(first.test, other.test)


@pytest.mark.parametrize("kind", ["patient", "janowczyk", "auto"])
@pytest.mark.parametrize("seed", range(4))
def test_no_patient_is_in_two_parts(kind: str, seed: int):
    labels, groups = patients(60)
    split = splits.make(kind, labels, groups, seed=seed)
    parts = [set(groups[rows]) for rows in split.parts().values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 60


def test_split_by_patient_meets_the_shares_in_every_class():
    labels, groups = patients(200)
    split = splits.make("patient", labels, groups)
    counts = np.bincount(labels)
    for rows, share in ((split.test, 0.3), (split.validation, 0.15 * 0.7)):
        np.testing.assert_allclose(np.bincount(labels[rows]) / counts, share, atol=0.01)


def test_random_split_meets_the_shares_to_one_image():
    labels = np.repeat([0, 1, 2], [1000, 100, 3])
    split = splits.make("random", labels)
    assert np.bincount(labels[split.test]).tolist() == [300, 30, 1]
    assert np.bincount(labels[split.validation]).tolist() == [105, 10, 1]
    assert np.bincount(labels[split.train]).tolist() == [595, 60, 1]


def test_janowczyk_divides_162_patients_as_the_paper_says():
    labels, groups = patients(162)
    split = splits.make("janowczyk", labels, groups)
    assert [len(set(groups[rows])) for rows in split.parts().values()] == [84, 29, 49]


def test_authors_list_is_the_test_part(tmp_path: Path):
    labels, groups = patients(20)
    paths = names(labels)
    wanted = ["3.png", "5.png", "8.png", "12.png", "elsewhere.png"]
    labels[[3, 5]], labels[[8, 12]] = 0, 1
    text = tmp_path / "names.txt"
    text.write_text("\n".join(wanted) + "\n")
    packed = tmp_path / "names.txt.gz"
    packed.write_bytes(gzip.compress(text.read_bytes()))
    for source in (text, str(packed), wanted):
        split = splits.make("authors", labels, groups, paths, test_names=source)
        assert split.test.tolist() == [3, 5, 8, 12]
        assert_partition(split, len(labels))


def test_pickled_list_is_never_unpickled(tmp_path: Path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    labels, _ = patients(20)
    file = tmp_path / "names.pkl"
    file.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="pickled lists are never read"):
        splits.make("authors", labels, paths=names(labels), test_names=file)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("given", [True, False])
def test_column_takes_the_parts_of_the_source(given: bool):
    labels, groups = patients(60)
    column = np.where(np.arange(len(labels)) % 4 == 0, "test", "train")
    if given:
        column = np.where(np.arange(len(labels)) % 4 == 1, "validation", column)
    split = splits.make("auto", labels, column=column)
    np.testing.assert_array_equal(split.test, np.flatnonzero(column == "test"))
    assert_partition(split, len(labels))
    if given:
        np.testing.assert_array_equal(split.validation, np.flatnonzero(column == "validation"))
    else:
        assert len(split.validation) == pytest.approx(0.15 * (column == "train").sum(), abs=2)
        by_patient = splits.make("column", labels, groups, column=column)
        assert not set(groups[by_patient.train]) & set(groups[by_patient.validation])


def test_automatic_choice_of_a_split():
    labels, groups = patients(60)
    only_test = np.full(len(labels), "test")
    for arguments, kind in [
        ({"groups": groups}, "patient"),
        ({}, "random"),
        ({"groups": groups, "column": only_test}, "patient"),
    ]:
        chosen, named = (splits.make(name, labels, **arguments) for name in ("auto", kind))
        np.testing.assert_array_equal(chosen.test, named.test)


def test_without_a_test_share_there_is_no_test_part():
    labels, groups = patients(60)
    for kind in ("patient", "random"):
        split = splits.make(kind, labels, groups, test=0.0)
        assert len(split.test) == 0
        assert_partition(split, len(labels))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "k-fold"}, "split 'k-fold' is unknown; choose from"),
        ({"kind": "patient"}, "split patient needs patients"),
        ({"kind": "janowczyk"}, "split janowczyk needs patients"),
        ({"kind": "authors"}, "split authors needs the file with the test names"),
        ({"kind": "authors", "test_names": ["no.png"]}, "names none of the images"),
        ({"kind": "authors", "test_names": "missing.txt"}, "missing.txt: No such file"),
        ({"kind": "column"}, "split column needs a source with parts"),
        ({"kind": "column", "column": np.full(40, "test")}, "no train part"),
        ({"kind": "random", "labels": np.zeros(40, int)}, "one class only .negative."),
        ({"kind": "random", "labels": np.arange(40) // 39}, "class positive has 1 image;"),
        ({"kind": "random", "test": 1.0}, "shares must lie between 0 and 1"),
        ({"kind": "patient", "groups": np.full(40, "p")}, "1 patient is too few"),
        ({"kind": "patient", "groups": np.repeat(["p", "q"], 20)}, "2 patients are too few"),
        ({"kind": "janowczyk", "groups": np.repeat(["p", "q"], 20)}, "2 patients are too few"),
        ({"kind": "patient", "groups": np.array(list("pqrs") * 10)}, "part has no image of class"),
    ],
)
def test_what_cannot_be_split_is_named(arguments: dict, message: str):
    given = {"labels": np.arange(40) % 2, "class_names": ["negative", "positive"], **arguments}
    given["paths"] = names(given["labels"])
    with pytest.raises(InputError, match=message) as caught:
        splits.make(**given)
    assert "\n" not in str(caught.value)


def test_split_file_follows_the_images_and_not_the_rows(tmp_path: Path):
    labels, groups = patients(30)
    paths = names(labels)
    split = splits.make("patient", labels, groups)
    split = Split(split.train[::2], split.validation, split.test)  # rows may be in no part
    split.save(tmp_path / "split.csv", paths)
    order = np.random.default_rng(0).permutation(len(paths))
    loaded = Split.load(tmp_path / "split.csv", paths[order])
    for name, rows in split.parts().items():
        assert set(paths[order][loaded.parts()[name]]) == set(paths[rows])
    assert [file.name for file in tmp_path.iterdir()] == ["split.csv"]


def test_split_file_of_other_data_is_refused(tmp_path: Path):
    paths = np.array(["a", "b", "c"])
    rows = [np.array([row]) for row in range(3)]
    Split(*rows).save(tmp_path / "split.csv", paths)
    with pytest.raises(InputError, match="c is not in this data set"):
        Split.load(tmp_path / "split.csv", paths[:2])
    (tmp_path / "split.csv").write_text("path,part\na,holdout\n")
    with pytest.raises(InputError, match="part 'holdout' is none of train"):
        Split.load(tmp_path / "split.csv", paths)
    (tmp_path / "split.csv").write_text("x\n")
    with pytest.raises(InputError, match="not a split file"):
        Split.load(tmp_path / "split.csv", paths)
    with pytest.raises(InputError, match="cannot be read"):
        Split.load(tmp_path / "none.csv", paths)


def test_long_tail_runs_geometrically_between_the_printed_ends():
    sizes = longtail.geometric_profile(9)
    assert sum(sizes) == 58_000
    assert (sizes[0], sizes[-1]) == (round(0.052 * 58_000), round(0.19 * 58_000))
    ratios = np.array(sizes[2:-1]) / sizes[1:-2]
    np.testing.assert_allclose(ratios, (0.19 / 0.052) ** (1 / 8), rtol=1e-3)


def test_thinning_keeps_as_many_of_each_class_as_asked():
    labels = np.repeat([0, 1, 2], [100, 50, 20])
    rows = np.arange(10, 165)
    kept = longtail.thin(rows, labels, [60, 20, 5], seed=0)
    assert np.bincount(labels[kept]).tolist() == [60, 20, 5]
    assert set(kept) <= set(rows)
    assert len(set(kept)) == 85
    np.testing.assert_array_equal(kept, longtail.thin(rows, labels, [60, 20, 5], seed=0))
    assert not np.array_equal(kept, longtail.thin(rows, labels, [60, 20, 5], seed=1))
    with pytest.raises(InputError, match="class DEB has 15 images, the profile asks for 16"):
        longtail.thin(rows, labels, [1, 1, 16], 0, ["ADI", "BACK", "DEB"])
    with pytest.raises(InputError, match="no long tail"):
        longtail.geometric_profile(9, 0.6, 0.5)


@needs_shared_data
def test_authors_list_of_idc_leaks_patients():
    from cfal_experiments.data import open_collection

    found = open_collection(SHARED / "data" / "idc")
    names = SHARED / "data" / "idc_splits" / "authors_test_names.txt.gz"
    split = splits.make("authors", found.labels, found.groups, found.paths, test_names=names)
    assert len(split.test) == 2356
    assert set(found.groups[split.train]) & set(found.groups[split.test])
