"""Downloads from a server on the loopback interface that behaves well, badly, or stops half-way."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("requests")

from cfal_experiments.data import fetch  # noqa: E402
from cfal_experiments.data.fetch import Archive, Report, download, unpack  # noqa: E402
from cfal_experiments.errors import InputError  # noqa: E402

download_module = sys.modules[download.__module__]
unpack_module = sys.modules[unpack.__module__]

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


@dataclass
class Server:
    """A web server with one file and the given manners; `requests` are the Range headers it saw."""

    content: bytes = CONTENT
    ranges: bool = True
    etag: str | None = '"one"'
    cuts: list[int] = field(default_factory=list)  # bytes to send before hanging up, per request
    statuses: list[int] = field(default_factory=list)  # to answer instead, per request
    hold: threading.Event | None = None  # after half of the file
    requests: list[str | None] = field(default_factory=list)
    url: str = ""

    def archive(self, **changes: object) -> Archive:
        """The archive that this server has."""
        values = {"url": self.url, "file": "data.bin", "md5": {MD5: "here"}, "about": "", **changes}
        return Archive(**values)


@pytest.fixture
def server() -> Iterator[Server]:
    """A running server; its attributes may be changed at any time."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            state.requests.append(wanted)
            if state.statuses and (status := state.statuses.pop(0)):
                self.send_error(status)
                return
            first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            if first >= len(state.content):
                self.send_error(416)
                return
            same = self.headers.get("If-Range", state.etag) == state.etag
            if not (state.ranges and wanted and same):
                first = 0
            self.send_response(206 if first else 200)
            if first:
                last, total = len(state.content) - 1, len(state.content)
                self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
            if state.etag:
                self.send_header("ETag", state.etag)
            body = state.content[first:]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if state.hold is not None:
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                state.hold.wait(30)
                return
            self.wfile.write(body[: state.cuts.pop(0)] if state.cuts else body)

        def log_message(self, *_):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{web.server_port}/data.bin?download=1"
    thread = threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state
    web.shutdown()
    web.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download_module, "FIRST_PAUSE", 0.001)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def visible(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if not file.name.endswith(".lock"))


class Recorder(Report):
    """Adds up what it hears."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}
        self.totals: dict[str, int | None] = {}
        self.notes: list[str] = []

    def begin(self, what: str, total: int | None, done: int) -> None:
        self.phase = what
        self.totals[what] = total
        self.done[what] = done

    def advance(self, count: int) -> None:
        self.done[self.phase] += count

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_whole_file_arrives_and_is_checked(server: Server, tmp_path: Path):
    heard = Recorder()
    target, md5 = fetch.fetch(server.archive(), tmp_path / "new", report=heard)
    assert target.read_bytes() == CONTENT
    assert md5 == MD5
    assert heard.done == heard.totals == {"downloading": 300_000, "checking": 300_000}
    assert visible(tmp_path / "new") == ["data.bin"]
    assert fetch.fetch(server.archive(), tmp_path / "new") == (target, None)
    assert server.requests == [None]


@pytest.mark.parametrize("etag", ['"one"', None, 'W/"weak"'])
def test_cut_connection_goes_on_where_it_stopped(server: Server, tmp_path: Path, etag):
    server.etag = etag
    server.cuts = [100_000, 50_000]
    heard = Recorder()
    fetch.fetch(server.archive(), tmp_path, report=heard)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-", "bytes=150000-"]
    assert heard.done["downloading"] == 300_000
    assert any("going on after 150,000 bytes" in note for note in heard.notes)


def test_server_without_ranges_is_asked_again_from_the_start(server: Server, tmp_path: Path):
    server.ranges = False
    server.cuts = [100_000]
    heard = Recorder()
    fetch.fetch(server.archive(), tmp_path, report=heard)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert any("from the start" in note for note in heard.notes)


def test_killed_run_is_taken_up_by_the_next(server: Server, tmp_path: Path):
    server.hold = threading.Event()
    code = (
        "import sys\n"
        "from cfal_experiments.data.fetch import Archive, fetch\n"
        "fetch(Archive(url=sys.argv[1], file='data.bin', md5={}, about=''), sys.argv[2])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, server.url, str(tmp_path)], stderr=subprocess.DEVNULL
    )
    part = tmp_path / "data.bin.part"
    try:
        for _ in range(600):
            if part.exists() and part.stat().st_size:
                break
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.05)
    finally:
        process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        process.wait()
        server.hold.set()
    server.hold = None
    have = part.stat().st_size
    assert 0 < have <= 150_000
    fetch.fetch(server.archive(), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert server.requests == [None, f"bytes={have}-"]
    assert visible(tmp_path) == ["data.bin"]


@pytest.mark.parametrize("etag", ['"two"', None])
@pytest.mark.parametrize("length", [250_000, 350_000, 50_000])
def test_file_replaced_on_the_server_is_not_spliced(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, etag: str | None, length: int
):
    """Bytes of two versions must not end up in one file, also where no checksum would tell."""
    monkeypatch.setattr(download_module, "ATTEMPTS", 1)
    server.etag = etag and '"one"'
    server.cuts = [100_000, 0]
    with pytest.raises(InputError, match="100,000 bytes are kept"):
        fetch.fetch(server.archive(md5={}), tmp_path)
    server.cuts = []
    server.etag = etag
    server.content = np.random.default_rng(1).bytes(length)
    monkeypatch.setattr(download_module, "ATTEMPTS", 3)
    fetch.fetch(server.archive(md5={}), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == server.content


def test_busy_server_is_asked_again(server: Server, tmp_path: Path):
    server.statuses = [503, 429, 500]
    fetch.fetch(server.archive(), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_refusals_and_silence_are_one_line(server: Server, tmp_path: Path):
    server.statuses = [404]
    with pytest.raises(InputError, match="answers 404 Not Found; ask the neighbour") as caught:
        fetch.fetch(server.archive(elsewhere="ask the neighbour"), tmp_path)
    assert "\n" not in str(caught.value)
    server.statuses = [503] * download_module.ATTEMPTS
    with pytest.raises(InputError, match="no answer in 6 attempts .the server answers 503"):
        fetch.fetch(server.archive(), tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    with pytest.raises(InputError, match="no answer in 6 attempts .*refused") as caught:
        fetch.fetch(server.archive(url=url), tmp_path)
    assert "\n" not in str(caught.value)
    assert visible(tmp_path) == []


def test_wrong_checksum_discards_the_download(server: Server, tmp_path: Path):
    with pytest.raises(InputError, match=f"MD5 {MD5} instead of 0123; it was discarded"):
        fetch.fetch(server.archive(md5={"0123": "a rumour"}), tmp_path)
    assert visible(tmp_path) == []
    accepted = server.archive(md5={"0123": "a rumour", MD5: "another"})
    assert fetch.fetch(accepted, tmp_path)[1] == MD5


def test_size_that_is_not_the_recorded_one_is_not_downloaded(server: Server, tmp_path: Path):
    with pytest.raises(InputError, match="offers 300,000 bytes, 299,999 are recorded"):
        fetch.fetch(server.archive(size=299_999), tmp_path)
    assert visible(tmp_path) == []


def test_too_full_a_disk_is_known_before(server: Server, tmp_path: Path, monkeypatch):
    usage = download_module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="0.00 GB are to come and 0.00 GB free; make room"):
        fetch.fetch(server.archive(), tmp_path)
    assert visible(tmp_path) == []


def test_disk_that_fills_up_keeps_what_arrived(server: Server, tmp_path: Path, monkeypatch):
    class Full(Report):
        def advance(self, count: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(download_module, "BLOCK", 1000)
    with pytest.raises(InputError, match="the disk is full; 1,000 bytes are kept in data.bin.part"):
        fetch.fetch(server.archive(), tmp_path, report=Full())
    fetch.fetch(server.archive(), tmp_path)
    assert server.requests == [None, "bytes=1000-"]
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def zipped(file: Path, members: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.read_bytes()


@pytest.mark.parametrize("keep", [False, True])
def test_zip_is_unpacked_without_its_own_folder(server: Server, tmp_path: Path, keep: bool):
    names = [f"CRC-VAL/{tissue}/{n}.tif" for tissue in ("ADI", "TUM") for n in range(3)]
    server.content = zipped(tmp_path / "source.zip", {name: name.encode() for name in names})
    (tmp_path / "source.zip").unlink()
    archive = server.archive(file="CRC.zip", md5={}, images=6)
    heard = Recorder()
    target, _ = fetch.fetch(archive, tmp_path, keep_archive=keep, report=heard)
    assert target == tmp_path / "CRC"
    assert (target / "TUM" / "2.tif").read_bytes() == b"CRC-VAL/TUM/2.tif"
    assert heard.done["unpacking"] == heard.totals["unpacking"]
    assert visible(tmp_path) == (["CRC", "CRC.zip"] if keep else ["CRC"])
    assert fetch.fetch(archive, tmp_path) == (target, None)


@pytest.mark.parametrize(
    "name", ["../out.txt", "/out.txt", "a/../../out.txt", "C:/out.txt", "..\\out.txt"]
)
def test_zip_that_leads_outside_is_refused_whole(tmp_path: Path, name: str):
    folder = tmp_path / "inside"
    folder.mkdir()
    zipped(folder / "x.zip", {"good.txt": b"x", name: b"x"})
    with pytest.raises(InputError, match="could write outside the folder"):
        unpack(folder / "x.zip", folder / "x", None, Report())
    assert visible(folder) == ["x.zip"]
    assert visible(tmp_path) == ["inside"]


def test_zip_with_a_link_is_refused(tmp_path: Path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(InputError, match="could write outside"):
        unpack(tmp_path / "x.zip", tmp_path / "x", None, Report())


def test_zip_that_is_damaged_or_incomplete_leaves_nothing(tmp_path: Path, monkeypatch):
    file = tmp_path / "x.zip"
    data = bytearray(zipped(file, {"a/1.png": bytes(5000), "a/2.png": os.urandom(5000)}))
    with pytest.raises(InputError, match="holds 2 images, 3 are recorded"):
        unpack(file, tmp_path / "x", 3, Report())
    usage = unpack_module.shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(unpack_module.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(InputError, match="unpacking needs 0.00 GB; make room"):
            unpack(file, tmp_path / "x", 2, Report())
    data[1000] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(InputError, match="damaged .*2.png"):
        unpack(file, tmp_path / "x", 2, Report())
    file.write_bytes(b"no zip")
    with pytest.raises(InputError, match="damaged"):
        unpack(file, tmp_path / "x", None, Report())
    assert visible(tmp_path) == ["x.zip"]


def test_every_archive_says_how_it_is_checked():
    for name, archive in fetch.ARCHIVES.items():
        assert archive.url.startswith(("https://", "http://"))
        assert all(len(md5) == 32 for md5 in archive.md5)
        assert archive.md5 or "no checksum" in archive.about
        assert fetch.find(name) is archive
    assert len(fetch.ARCHIVES["nct-crc-he-100k"].md5) == 2
    with pytest.raises(InputError, match="archive 'crc' is unknown; choose from nct-crc-he-100k"):
        fetch.find("crc")
