"""The public archives of the paper's data: where they lie and how to know them again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """One file on a public server.

    Attributes:
        url: where it lies.
        file: name of the file.
        md5: checksums to accept, each with who records it; empty where none is published.
        size: bytes, or None where unknown.
        images: number of images in a .zip, or None.
        about: contents, source and licence in one line.
        elsewhere: where else to get it when the server is silent.
    """

    url: str
    file: str
    md5: dict[str, str]
    about: str
    size: int | None = None
    images: int | None = None
    elsewhere: str = ""

    @property
    def unpacked(self) -> bool:
        """Whether the file is a .zip, to be unpacked; an .npz is used as it is."""
        return self.file.endswith(".zip")

    @property
    def target(self) -> str:
        """Name of the folder, or of the file that is used as it is."""
        return self.file.removesuffix(".zip")


_KATHER = "https://zenodo.org/records/1214456/files/"
_MEDMNIST = "https://zenodo.org/records/10519652/files/"


def _pathmnist(suffix: str, size: int, md5: str) -> Archive:
    return Archive(
        url=f"{_MEDMNIST}pathmnist{suffix}.npz?download=1",
        file=f"pathmnist{suffix}.npz",
        md5={md5: "the MedMNIST package"},
        about=f"NCT-CRC and CRC-VAL at {size} x {size}, with MedMNIST's split; CC BY 4.0",
    )


ARCHIVES = {
    "nct-crc-he-100k": Archive(
        url=f"{_KATHER}NCT-CRC-HE-100K.zip?download=1",
        file="NCT-CRC-HE-100K.zip",
        md5={
            "6fd702d11df6292bc054397ae038a464": "the Zenodo record as most sources quote it",
            # One source quotes this sum for this file; others for the one without stain
            # normalisation, which the size would give away.
            "035777cf327776a71a05c95da6d6325f": "one source; others give it to the NONORM file",
        },
        size=11_690_284_003,
        images=100_000,
        about="colorectal tissue, 9 classes, 224 x 224, for training; CC BY 4.0",
    ),
    "crc-val-he-7k": Archive(
        url=f"{_KATHER}CRC-VAL-HE-7K.zip?download=1",
        file="CRC-VAL-HE-7K.zip",
        md5={"2fd1651b4f94ebd818ebf90ad2b6ce06": "the Zenodo record"},
        size=800_276_929,
        images=7_180,
        about="colorectal tissue of other patients, the test set of nct-crc-he-100k; CC BY 4.0",
    ),
    "pathmnist": _pathmnist("", 28, "a8b06965200029087d5bd730944a56c1"),
    "pathmnist-64": _pathmnist("_64", 64, "55aa9c1e0525abe5a6b9d8343a507616"),
    "pathmnist-128": _pathmnist("_128", 128, "ac42d08fb904d92c244187169d1fd1d9"),
    "pathmnist-224": _pathmnist("_224", 224, "2c51a510bcdc9cf8ddb2af93af1eadec"),
    "idc": Archive(
        url="http://gleason.case.edu/webdata/jpi-dl-tutorial/IDC_regular_ps50_idx5.zip",
        file="IDC_regular_ps50_idx5.zip",
        md5={},
        images=277_524,
        about="breast tissue with and without invasive ductal carcinoma, 50 x 50; no checksum is "
        "published",
        elsewhere="Kaggle has a copy (paultimothymooney/breast-histopathology-images, needs an "
        "account)",
    ),
}
