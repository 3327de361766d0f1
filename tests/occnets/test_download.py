# SPDX-License-Identifier: MIT
"""Released weights by name: a local server that breaks off, changes its mind and lies, and what is made of it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from occnets import cli, download, released
from occnets.checkpoints import CheckpointError, load_pretrained
from occnets.config import config_names, load_config
from occnets.download import DownloadError, cache_folder, cached_path, fetch
from occnets.models import build_model
from occnets.released import RELEASES, Release, find_release

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Files over HTTP, with the faults a test asks for.

    Attributes:
        files: path to content.
        ranges: answers requests for a part, ``shift`` bytes too early.
        cuts: for each coming request, the bytes after which the connection breaks; None for no fault.
        status: for each coming request, an error to answer with; 0 for none.
        before: called before each answer.
        asked: (path, Range header) of every request.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"/a/model.pt": CONTENT}
        self.ranges, self.kind, self.length = True, "application/octet-stream", True
        self.shift = 0
        self.cuts: list[int | None] = []
        self.status: list[int] = []
        self.before: Callable[[], None] = lambda: None
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *words: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *words: Any) -> None:
                """Clients that went away are part of the tests."""

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append((request.path, request.headers.get("Range")))
        self.before()
        status = self.status.pop(0) if self.status else 0
        content = self.files.get(request.path)
        if status or content is None:
            request.send_error(status or 404)
            return
        tag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        wanted = request.headers.get("Range")
        start = 0
        if wanted and self.ranges and request.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-")) - self.shift
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            request.send_response(200)
        if self.ranges:
            request.send_header("ETag", tag)
        if self.length:
            request.send_header("Content-Length", str(len(content) - start))
        request.send_header("Content-Type", self.kind)
        request.end_headers()
        cut = self.cuts.pop(0) if self.cuts else None
        request.wfile.write(content[start:] if cut is None else content[start : start + cut])

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OCCNETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    yield made
    made.close()


def left() -> list[str]:
    return sorted(path.name for path in cache_folder().iterdir()) if cache_folder().is_dir() else []


# --- transfers -------------------------------------------------------------------------------------------------------


def test_files_are_fetched_once_with_progress(server: Server) -> None:
    seen: list[tuple[int, int | None]] = []
    url = f"{server.url}/a/model.pt"
    path = fetch(url, sha256=DIGEST[:8], progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT and path == cached_path(url) and path.name.endswith("-model.pt")
    assert seen[0] == (0, len(CONTENT)) and seen[-1] == (len(CONTENT),) * 2 and seen == sorted(seen)
    assert fetch(url, sha256=DIGEST) == path
    assert len(server.asked) == 1 and left() == [path.name]


def test_equal_names_in_other_folders_are_other_files(server: Server) -> None:
    server.files["/b/model.pt"] = b"other"
    first, second = (fetch(f"{server.url}/{folder}/model.pt") for folder in "ab")
    assert first.read_bytes() == CONTENT and second.read_bytes() == b"other"


def test_a_broken_transfer_is_continued(server: Server) -> None:
    server.cuts = [100_000, 50_000]
    path = fetch(f"{server.url}/a/model.pt", sha256=DIGEST)
    assert path.read_bytes() == CONTENT
    assert [part for _, part in server.asked] == [None, "bytes=100000-", "bytes=150000-"]


def test_without_ranges_it_begins_again(server: Server) -> None:
    server.cuts, server.ranges = [100_000, 299_999], False
    assert fetch(f"{server.url}/a/model.pt", sha256=DIGEST).read_bytes() == CONTENT
    assert [part for _, part in server.asked] == [None, None, None]


def test_parts_of_two_versions_are_never_joined(server: Server) -> None:
    server.cuts = [100_000]
    newer = CONTENT[::-1]

    def replace() -> None:
        if len(server.asked) == 2:
            server.files["/a/model.pt"] = newer

    server.before = replace
    assert fetch(f"{server.url}/a/model.pt").read_bytes() == newer
    assert server.asked[1][1] == "bytes=100000-"


def test_a_server_that_goes_on_elsewhere_is_not_believed(server: Server) -> None:
    server.cuts, server.shift = [100_000], 1
    assert fetch(f"{server.url}/a/model.pt", sha256=DIGEST).read_bytes() == CONTENT
    assert [part for _, part in server.asked] == [None, "bytes=100000-", None]


def test_busy_servers_are_asked_again(server: Server) -> None:
    server.status = [503, 429]
    assert fetch(f"{server.url}/a/model.pt").read_bytes() == CONTENT
    server.status = [503] * 4
    server.files["/b"] = b"b"
    with pytest.raises(DownloadError, match=r"answers 503 .*4 times; check the connection"):
        fetch(f"{server.url}/b")


def test_a_transfer_that_never_ends_well_leaves_nothing(server: Server) -> None:
    server.cuts = [1000] * 4
    with pytest.raises(DownloadError, match=r"broke off after 4,000 of 300,000 bytes, 4 times"):
        fetch(f"{server.url}/a/model.pt")
    assert left() == []
    assert fetch(f"{server.url}/a/model.pt", sha256=DIGEST).read_bytes() == CONTENT


def test_silence_ends(server: Server) -> None:
    gate = threading.Event()
    server.before = lambda: gate.wait(10) and None
    try:
        with pytest.raises(DownloadError, match=r"no (answer in time|connection).*4 times"):
            fetch(f"{server.url}/a/model.pt", timeout=0.05)
    finally:
        gate.set()
    assert left() == []


def test_unknown_lengths_work(server: Server) -> None:
    server.length = False
    seen: list[Any] = []
    path = fetch(f"{server.url}/a/model.pt", sha256=DIGEST, progress=lambda done, total: seen.append(total))
    assert path.read_bytes() == CONTENT and set(seen) == {None}


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_wrong_checksum_is_thrown_away(server: Server) -> None:
    with pytest.raises(DownloadError, match=rf"SHA-256 is {DIGEST}, expected 00000000\.\.\..* thrown away"):
        fetch(f"{server.url}/a/model.pt", sha256="00000000")
    assert left() == []


def test_answers_of_the_server_are_explained(server: Server) -> None:
    with pytest.raises(DownloadError, match=r"/none: the server answers 404 .*not there any more"):
        fetch(f"{server.url}/none")
    server.status = [403]
    with pytest.raises(DownloadError, match="access is refused"):
        fetch(f"{server.url}/a/model.pt")
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match="sent a web page"):
        fetch(f"{server.url}/a/model.pt")
    assert left() == [] and len(server.asked) == 3


def test_offline_machines_are_told_at_once(server: Server) -> None:
    url = f"{server.url}/a/model.pt"
    server.http.server_close()
    with pytest.raises(DownloadError, match=r"no connection to 127.0.0.1:\d+ .*is this machine online"):
        fetch(url)


def test_full_disks_are_noticed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1 << 17))
    with pytest.raises(DownloadError, match=r"is full \(0 MiB are needed, 0 MiB are free\).*OCCNETS_CACHE"):
        fetch(f"{server.url}/a/model.pt")
    monkeypatch.undo()


def test_disks_that_fill_up_meanwhile_are_noticed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(progress: Any = None) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    real = os.fdopen

    def opened(handle: int, mode: str) -> Any:
        stream = real(handle, mode, buffering=0)
        wrapped = SimpleNamespace(
            **{name: getattr(stream, name) for name in ("seek", "truncate", "read", "flush")}, write=full
        )
        return _Closing(wrapped, stream)

    monkeypatch.setattr(download.os, "fdopen", opened)
    with pytest.raises(DownloadError, match="is full .*make room or set OCCNETS_CACHE"):
        fetch(f"{server.url}/a/model.pt")
    assert left() == []


class _Closing:
    def __init__(self, wrapped: Any, stream: Any) -> None:
        self.wrapped, self.stream = wrapped, stream

    def __enter__(self) -> Any:
        return self.wrapped

    def __exit__(self, *error: Any) -> None:
        self.stream.close()


def test_the_cache_folder_must_be_writable(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OCCNETS_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(DownloadError, match="cannot be written .*set OCCNETS_CACHE"):
        fetch(f"{server.url}/a/model.pt")


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://example.org/x", "http:", "model.pt"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must begin with http"):
        fetch(url)


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCCNETS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/occnets")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "occnets"


# --- names -----------------------------------------------------------------------------------------------------------


def test_sign_agnostic_systems_start_from_the_files_of_convonet() -> None:
    for name, other in (("object", "shapenet-3plane"), ("scene", "room-grid64"), ("large-scene", "room-crop-grid64")):
        borrowed, own = find_release(f"saconvonet-{name}"), find_release(f"convonet-{other}")
        assert borrowed is not None and own is not None
        assert borrowed.url == own.url and find_release(own.file) == own
        keys = [build_model(load_config(release.config)).state_dict().keys() for release in (borrowed, own)]
        assert keys[0] == keys[1]


def test_every_release_has_its_configuration_and_its_own_names() -> None:
    assert {release.config for release in RELEASES} <= set(config_names())
    names = [name for release in RELEASES for name in release.names]
    assert len(set(names)) == len(names) and len(RELEASES) == 32
    assert find_release("onet_img2mesh_3").config == "onet-img"
    assert find_release("onet_pcl2mesh-5c0be168.pt").sha256 == "5c0be168"
    assert find_release("pointcloud/room_grid64").config == "convonet-room-grid64"
    assert find_release("pointcloud_crop/room_grid64.pt").config == "convonet-room-crop-grid64"
    assert find_release("room_grid64.pt") is None
    assert cached_path(find_release("convonet-room-grid64").url) != cached_path(
        find_release("convonet-room-crop-grid64").url
    )
    assert {release.sha256 == "" for release in RELEASES if "convonet" in release.config} == {True}


@pytest.fixture
def weights(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> torch.nn.Module:
    """Random weights of onet-unconditional-cars as a release of the server."""
    torch.manual_seed(0)
    model = build_model(load_config("onet-unconditional-cars"))
    torch.save({"model": model.state_dict(), "loss_val_best": np.float64(1.0)}, tmp_path / "made.pt")
    content = (tmp_path / "made.pt").read_bytes()
    file = f"cars-{hashlib.sha256(content).hexdigest()[:8]}.pt"
    server.files[f"/{file}"] = content
    monkeypatch.setattr(
        released,
        "RELEASES",
        (Release("onet-unconditional-cars", file, f"{server.url}/{file}", server.url), *RELEASES[-1:]),
    )
    return model


def same(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in model.state_dict().items())


def test_released_models_load_by_name(weights: torch.nn.Module, server: Server) -> None:
    for name in ("onet-unconditional-cars", "cars", released.RELEASES[0].file, released.RELEASES[0].url):
        model, config = load_pretrained(name)
        assert same(model, weights) and config["data"]["classes"] == ["02958343"]
    assert len(server.asked) == 1
    with pytest.raises(FileNotFoundError, match="no bundled model, released model.*authors: onet-unconditional-cars"):
        load_pretrained("onet-unconditional-car")
    with pytest.raises(DownloadError, match="published on the page .* only.*--config dpconvonet-room-canonical-3plane"):
        load_pretrained("dpconvonet-room-canonical-3plane")


def test_family_files_may_name_a_url(weights: torch.nn.Module, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "onet_pretrained.yaml"
    path.write_text(
        f"inherit_from: onet-unconditional\ntest: {{model_file: '{server.url}/{released.RELEASES[0].file}'}}\n"
    )
    assert same(load_pretrained(path)[0], weights)
    assert same(load_pretrained(f"{server.url}/{released.RELEASES[0].file}", config=path)[0], weights)


def test_what_is_no_weights_file_is_never_run(server: Server, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": {}, "x": Payload()}, tmp_path / "evil.pt")
    server.files["/evil.pt"] = (tmp_path / "evil.pt").read_bytes()
    with pytest.raises(CheckpointError, match="read safely"):
        load_pretrained(f"{server.url}/evil.pt", config="onet-unconditional")
    assert not (tmp_path / "ran").exists()


def test_command_downloads_and_lists(
    weights: torch.nn.Module, server: Server, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("occnets.zoo.list_models", lambda: ["onet-unconditional-cars", "onet-voxel"])

    def rows() -> list[dict[str, Any]]:
        assert cli.main(["models", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    first, other = rows()
    assert (first["weights"], first["downloaded"], other["weights"]) == ("released", False, "none")
    assert first["family"] == "onet" and first["input"] == "none" and first["parameters"] == 298_369
    assert cli.main(["models", "--download", "cars"]) == 0
    out, err = capsys.readouterr()
    assert Path(out.strip()).read_bytes() == server.files[f"/{first['released_as']}"] and "MiB" in err
    assert rows()[0]["downloaded"]
    assert cli.main(["models"]) == 0
    assert "weights of the original authors, downloaded\n" in capsys.readouterr().out
    assert cli.main(["models", "--download", "nothing"]) == 1
    assert "is no released model" in capsys.readouterr().err
