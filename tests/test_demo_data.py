"""Data of the demo: long tails, splits by patient, the IDC folder, batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
Image = pytest.importorskip("PIL.Image")

from cfal_experiments.demo import digits, idc, splits  # noqa: E402
from cfal_experiments.demo.batches import Normalisation, batches, flip_at_random  # noqa: E402
from cfal_experiments.demo.samples import Samples  # noqa: E402
from cfal_experiments.errors import InputError  # noqa: E402


def write_patch(folder: Path, patient: str, label: int, number: int, size=(50, 50)) -> Path:
    path = folder / patient / str(label) / f"{patient}_idx5_x{number}_y1_class{label}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def patients(count: int, seed: int = 0) -> Samples:
    """Labels and patients without meaning in the pixels; patients differ in size and class mix."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 30, count)
    groups = np.repeat([f"p{number}" for number in range(count)], sizes)
    share = np.repeat(rng.uniform(0.1, 0.6, count), sizes)
    labels = torch.from_numpy((rng.random(len(groups)) < share).astype(np.int64))
    images = torch.zeros(len(groups), 3, 2, 2, dtype=torch.uint8)
    return Samples(images, labels, ("negative", "positive"), groups)


def test_long_tail_profile_is_geometric_between_its_ends():
    assert digits.long_tail_profile(1000, 4, 1000.0) == [1000, 100, 10, 1]
    assert digits.long_tail_profile(20, 3, 100.0) == [20, 2, 1]  # 0.2 is raised to one sample
    assert digits.long_tail_profile(7, 1, 100.0) == [7]


def test_long_tailed_digits_keep_the_test_part_balanced():
    samples = digits.load()
    split = digits.long_tailed_split(samples, seed=3)
    largest = max(samples.counts(split.train))
    profile = digits.long_tail_profile(largest, 10, 100.0)
    assert sorted(samples.counts(split.train), reverse=True) == profile
    for rows in (split.validation, split.test):
        counts = samples.counts(rows)
        assert max(counts) - min(counts) <= 3
    rows = np.concatenate(list(split.parts().values()))
    assert len(np.unique(rows)) == len(rows)


def test_splits_depend_on_the_seed_and_on_nothing_else():
    samples = digits.load()
    first, again, other = (digits.long_tailed_split(samples, seed) for seed in (1, 1, 2))
    for name, rows in first.parts().items():
        np.testing.assert_array_equal(rows, again.parts()[name])
    assert samples.counts(first.train) != samples.counts(other.train)


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_in_two_parts(seed: int):
    samples = patients(60)
    split = splits.by_group(samples, seed)
    parts = [set(samples.groups[rows]) for rows in split.parts().values()]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    rows = np.sort(np.concatenate(list(split.parts().values())))
    np.testing.assert_array_equal(rows, np.arange(len(samples)))


def test_split_by_patient_keeps_class_proportions_near_those_of_the_whole():
    samples = patients(200)
    whole = samples.labels.float().mean()
    for rows in splits.by_group(samples, 0).parts().values():
        assert abs(samples.labels[rows].float().mean() - whole) < 0.05


@pytest.mark.parametrize("count", [1, 4, 6])
def test_too_few_patients_are_refused(count: int):
    with pytest.raises(InputError, match=f"{count} patients are too few"):
        splits.by_group(patients(count), 0)


def test_idc_folder_is_read_with_odd_sizes_and_a_truncated_file(tmp_path: Path):
    write_patch(tmp_path, "10", 0, 1)
    odd = write_patch(tmp_path, "10", 1, 2, size=(50, 23))
    write_patch(tmp_path, "11", 1, 3)
    truncated = write_patch(tmp_path, "11", 0, 4)
    truncated.write_bytes(truncated.read_bytes()[:900])
    (tmp_path / "manifest.csv").write_text("not a patient\n")

    samples, report = idc.load(tmp_path, idc.find_patches(tmp_path))
    assert samples.images.shape == (3, 3, 32, 32)
    assert samples.labels.tolist() == [0, 1, 1]
    assert samples.groups.tolist() == ["10", "10", "11"]
    assert (report.found, report.used, report.odd_sizes) == (4, 3, 1)
    assert [path for path, _ in report.unreadable] == [truncated]
    with Image.open(odd) as image:
        expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(samples.images[1].permute(1, 2, 0), expected)


def test_idc_grey_and_transparent_files_become_rgb(tmp_path: Path):
    for label, mode in enumerate(("L", "RGBA")):
        path = write_patch(tmp_path, "1", label, label)
        with Image.open(path) as image:
            image.convert(mode).save(path)
    samples, report = idc.load(tmp_path, idc.find_patches(tmp_path))
    assert samples.images.shape == (2, 3, 32, 32)
    assert report.unreadable == ()


def test_idc_folders_that_cannot_be_used_are_named(tmp_path: Path):
    with pytest.raises(InputError, match="missing: no such folder"):
        idc.find_patches(tmp_path / "missing")
    with pytest.raises(InputError, match="empty folder"):
        idc.find_patches(tmp_path)
    (tmp_path / "cats").mkdir()
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(InputError, match="not an IDC folder"):
        idc.find_patches(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        idc.find_patches(tmp_path / "file.txt")
    write_patch(tmp_path / "IDC_regular", "1", 0, 1)
    with pytest.raises(InputError, match="did you mean .*IDC_regular"):
        idc.find_patches(tmp_path)
    with pytest.raises(InputError, match="no readable positive patch"):
        idc.find_patches(tmp_path / "IDC_regular")


def test_idc_class_lost_to_damaged_files_is_refused(tmp_path: Path):
    write_patch(tmp_path, "1", 0, 1)
    write_patch(tmp_path, "1", 1, 2).write_bytes(b"")
    found = idc.find_patches(tmp_path)
    with pytest.raises(InputError, match="no readable positive patch"):
        idc.load(tmp_path, found)
    for patch in found:
        patch.path.write_bytes(b"no image")
    with pytest.raises(InputError, match="none of 2 patches could be read"):
        idc.load(tmp_path, found)


def test_sampling_takes_whole_patients(tmp_path: Path):
    every = [
        idc.Patch(tmp_path, f"p{number}", row % 2) for number in range(20) for row in range(10)
    ]
    kept = idc.sample_patients(every, limit=55, seed=0)
    assert len(kept) == 50
    assert len({patch.patient for patch in kept}) == 5
    assert idc.sample_patients(every, 0, 0) is every
    assert idc.sample_patients(every, len(every), 0) is every


def test_normalisation_centres_and_scales_the_training_rows():
    images = torch.randint(0, 256, (40, 3, 5, 5), dtype=torch.uint8)
    images[:, 1] //= 4
    samples = Samples(images, torch.zeros(40, dtype=torch.long), ("only",))
    rows = np.arange(10, 30)
    result = Normalisation.of(samples, rows)(images[rows])
    torch.testing.assert_close(result.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        result.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0
    )


def test_normalisation_of_a_constant_channel_is_finite():
    samples = Samples(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8), torch.zeros(4).long(), ("a",))
    result = Normalisation.of(samples, np.arange(4))(samples.images)
    assert torch.equal(result, torch.zeros(4, 1, 2, 2))


def test_flips_yield_all_four_variants_and_nothing_else():
    image = torch.arange(6.0).reshape(1, 1, 2, 3)
    variants = [image[0], image[0].flip(2), image[0].flip(1), image[0].flip(1, 2)]
    flipped = flip_at_random(image.expand(200, -1, -1, -1), torch.Generator().manual_seed(0))
    seen = [sum(torch.equal(one, variant) for one in flipped) for variant in variants]
    assert sum(seen) == 200
    assert min(seen) > 20


def test_batches_cover_the_rows_once_in_the_order_of_the_generator():
    samples = digits.load()
    rows = np.arange(5, 75)
    normalise = Normalisation.of(samples, rows)

    def order(seed: int | None) -> list[int]:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        parts = batches(samples, rows, normalise, 32, generator=generator)
        return torch.cat([target for _, target in parts]).tolist()

    labels = samples.labels[rows].tolist()
    assert order(None) == labels
    assert order(0) == order(0) != order(1)
    assert sorted(order(0)) == sorted(labels)
