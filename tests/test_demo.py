"""The demo as a user meets it: exit status, messages, and the same scores twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")
Image = pytest.importorskip("PIL.Image")

from cfal_experiments.demo import command, tasks  # noqa: E402

# Without compiled kernels the reference serves, and says so.
pytestmark = pytest.mark.filterwarnings("ignore::cfal_kernels.diagnostics.CFALWarning")


@pytest.fixture(autouse=True)
def keep_thread_count():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def idc_folder(tmp_path: Path) -> Path:
    """Twenty patients; positive patches are darker, as in the real data."""
    rng = np.random.default_rng(0)
    for patient in range(100, 120):
        for number in range(8):
            label = int(number < 3)
            path = tmp_path / str(patient) / str(label) / f"{patient}_x{number}_class{label}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            height = 30 if number == 7 and patient < 103 else 50
            pixels = rng.integers(0, 120, (height, 50, 3)) + 100 * (1 - label)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path


def scores_of(output: str) -> str:
    """The part of the printout that holds results, without the times."""
    return output[output.index("Test scores") : output.index("Time per step")]


def test_digits_print_the_same_scores_twice(capsys: pytest.CaptureFixture[str]):
    outputs = []
    for _ in range(2):
        assert command.main(["--seeds", "2", "--epochs", "2"]) == 0
        outputs.append(capsys.readouterr().out)
    assert scores_of(outputs[0]) == scores_of(outputs[1])
    for word in ("macro F1", "minority recall", "accuracy", "cross-entropy", "cfal, eager"):
        assert word in outputs[0]


def test_idc_runs_end_to_end_and_reports_what_it_skipped(
    idc_folder: Path, capsys: pytest.CaptureFixture[str]
):
    damaged = next((idc_folder / "100" / "0").glob("*.png"))
    damaged.write_bytes(damaged.read_bytes()[:500])
    assert (
        command.main(["--data", str(idc_folder), "--seeds", "1", "--epochs", "1", "--threads", "1"])
        == 0
    )
    captured = capsys.readouterr()
    assert f"skipped {damaged}" in captured.err
    assert "159 patches of 20 patients: 99 negative, 60 positive" in captured.out
    assert "3 are not 50 x 50" in captured.out
    assert "1 unreadable, skipped" in captured.out
    assert "145,058 parameters" in captured.out
    assert "positive F1" in captured.out


def test_idc_can_be_limited_to_some_patients(idc_folder: Path):
    task = tasks.load_idc_task(idc_folder, max_patches=130)
    facts = [text for _, text in task.facts]
    assert any("128 patches of 16 patients" in text for text in facts)
    assert any("32 left out by --max-patches 130" in text for text in facts)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent", "no such file or folder"),
        (lambda folder: folder, "empty folder"),
    ],
)
def test_unusable_folder_is_one_line_and_status_2(make, message, tmp_path, capsys):
    assert command.main(["--data", str(make(tmp_path))]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_too_few_patients_are_known_before_training(
    idc_folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert command.main(["--data", str(idc_folder), "--max-patches", "16"]) == 2
    assert "2 patients are too few" in capsys.readouterr().err


def test_a_limit_that_leaves_one_class_is_named(tmp_path: Path, capsys):
    for patient in range(4):
        path = tmp_path / str(patient) / str(patient % 2) / "patch.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (50, 50)).save(path)
    assert command.main(["--data", str(tmp_path), "--max-patches", "1"]) == 2
    assert "--max-patches" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--seeds", "0"], ["--epochs", "x"], ["--max-patches", "-1"], ["--nonsense"]]
)
def test_wrong_options_exit_with_status_2(options: list[str]):
    with pytest.raises(SystemExit) as caught:
        command.main(options)
    assert caught.value.code == 2


def test_help_needs_neither_torch_nor_scikit_learn():
    code = (
        "import sys; from cfal_experiments.demo import command; command.parser().format_help();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'sklearn', 'PIL')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
