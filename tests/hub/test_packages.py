"""fetch_package against an index on this machine: what it answers, where it breaks off, what is left in the cache."""

import base64
import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mtpd_mlx.files.lock import locked
from mtpd_mlx.hub import packages
from mtpd_mlx.hub.package_index import without_login
from mtpd_mlx.hub.packages import SMOLLM2, Package, PackageError, cache_folder, fetch_package

CONTENT = bytes(range(256)) * 4096  # does not compress to nothing: stored
WHEEL = "a_model-1.0-py3-none-any.whl"


def wheel_of(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a_model/__init__.py", "raise SystemExit('executed')")
        archive.writestr("a_model/model.gguf", content)
    return out.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


DATA = wheel_of(CONTENT)
PACKAGE = Package("a-model", "1.0", WHEEL, sha256(DATA), "a_model/model.gguf", sha256(CONTENT))


@dataclass
class Index:
    """`cuts`: after how many bytes each of the next answers with the wheel ends. `login`: expected, user:password."""

    data: bytes = DATA
    html: bool = False
    page: bytes | None = None
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    login: str | None = None
    status: int = 200
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    index = Index()
    server = serve(index)
    monkeypatch.setenv("PIP_INDEX_URL", index.url + "/simple/")
    monkeypatch.setenv("MTPD_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield index
    server.shutdown()
    server.server_close()


def serve(index: Index) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def send(self, status: int, body: bytes, kind: str, length: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            index.seen.append((self.path, self.headers.get("Range")))
            expected = None if index.login is None else "Basic " + base64.b64encode(index.login.encode()).decode()
            if self.headers.get("Authorization") != expected:
                return self.send(401, b"", "text/plain")
            if self.path == "/simple/a-model/":
                return self.listing()
            if self.path != f"/files/{WHEEL}" or index.status != 200:
                return self.send(404 if index.status == 200 else index.status, b"", "text/plain")
            wanted = self.headers.get("Range")
            begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and index.ranges else 0
            if begin >= len(index.data):
                return self.send(416, b"", "text/plain")
            rest = index.data[begin:]
            sent = rest[: index.cuts.pop(0)] if index.cuts else rest
            return self.send(206 if begin else 200, sent, "application/zip", len(rest))

        def listing(self) -> None:
            if index.page is not None:
                return self.send(200, index.page, "application/vnd.pypi.simple.v1+json")
            if index.html:
                page = (
                    f'<html><body><a href="../../files/{WHEEL}#sha256=0" data-requires-python="&gt;3">{WHEEL}</a></body></html>'
                )
                return self.send(200, page.encode(), "text/html")
            files = [{"filename": WHEEL, "url": f"{index.url}/files/{WHEEL}", "hashes": {}}]
            return self.send(200, json.dumps({"files": files}).encode(), "application/vnd.pypi.simple.v1+json")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    index.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def folder() -> Path:
    return cache_folder() / "packages" / "a-model-1.0"


def held() -> list[str]:
    return sorted(path.name for path in folder().iterdir()) if folder().exists() else []


@pytest.mark.parametrize("html", [False, True])
def test_the_member_lies_in_the_cache_and_is_fetched_once(index: Index, html: bool) -> None:
    index.html = html
    file = fetch_package(PACKAGE)
    assert file.read_bytes() == CONTENT and held() == ["model.gguf"]
    seen = len(index.seen)
    assert fetch_package(PACKAGE) == file and len(index.seen) == seen


def test_a_damaged_file_of_the_cache_is_fetched_again(index: Index, caplog: pytest.LogCaptureFixture) -> None:
    fetch_package(PACKAGE).write_bytes(b"damaged")
    assert fetch_package(PACKAGE).read_bytes() == CONTENT
    assert "damaged" in caplog.text


def test_a_lost_connection_goes_on_where_it_broke(index: Index) -> None:
    index.cuts = [1000, 5000, 0, 0]
    assert fetch_package(PACKAGE).read_bytes() == CONTENT
    assert [r for path, r in index.seen if path.startswith("/files")] == [None, "bytes=1000-", *["bytes=6000-"] * 3]


def test_a_connection_that_gives_nothing_ends_in_one_line_and_the_next_run_goes_on(index: Index) -> None:
    index.cuts = [1000] + [0] * packages.ATTEMPTS
    with pytest.raises(PackageError, match=r"a-model 1\.0: .*ended early \(after 1000 bytes\); run the same command again"):
        fetch_package(PACKAGE)
    assert held() == [f"{WHEEL}.partial"]
    assert fetch_package(PACKAGE).read_bytes() == CONTENT
    assert index.seen[-1][1] == "bytes=1000-"


def test_a_server_without_ranges_begins_again(index: Index) -> None:
    index.ranges, index.cuts = False, [1000]
    assert fetch_package(PACKAGE).read_bytes() == CONTENT


@pytest.mark.parametrize("left", [DATA[:100] + b"x" + DATA[101:2000], DATA + b"more"], ids=["damaged", "longer"])
def test_a_damaged_partial_is_removed(index: Index, left: bytes) -> None:
    folder().mkdir(parents=True)
    (folder() / f"{WHEEL}.partial").write_bytes(left)
    with pytest.raises(PackageError, match=f"got a wheel of sha256 .*, expected {PACKAGE.wheel_sha256}; it was removed"):
        fetch_package(PACKAGE)
    assert held() == []
    assert fetch_package(PACKAGE).read_bytes() == CONTENT


def test_a_whole_wheel_that_was_left_needs_no_index(index: Index) -> None:
    folder().mkdir(parents=True)
    (folder() / f"{WHEEL}.partial").write_bytes(DATA)
    assert fetch_package(PACKAGE).read_bytes() == CONTENT
    assert index.seen == []


def test_another_wheel_is_refused(index: Index) -> None:
    index.data = wheel_of(b"other")
    with pytest.raises(PackageError, match=f"sha256 {sha256(index.data)}, expected {PACKAGE.wheel_sha256}"):
        fetch_package(PACKAGE)
    assert held() == []


def test_another_member_is_refused(index: Index) -> None:
    index.data = wheel_of(b"other")
    pinned = Package("a-model", "1.0", WHEEL, sha256(index.data), "a_model/model.gguf", sha256(CONTENT))
    with pytest.raises(PackageError, match=f"a_model/model.gguf: got sha256 {sha256(b'other')}, expected {sha256(CONTENT)}"):
        fetch_package(pinned)
    assert held() == [f"{WHEEL}.partial"]


def test_the_login_of_an_index_reaches_its_host_and_no_message(
    index: Index, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    index.login = "me:s3cr:t"
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("http://", "http://me:s3cr%3At@") + "/simple")
    with caplog.at_level("INFO"):
        assert fetch_package(PACKAGE).read_bytes() == CONTENT
    assert "downloading" in caplog.text and "s3cr" not in caplog.text
    index.login = "other:one"
    (folder() / "model.gguf").unlink()
    with pytest.raises(PackageError, match="answered 401") as refused:
        fetch_package(PACKAGE)
    assert "s3cr" not in str(refused.value)


@pytest.mark.parametrize(
    "page, said",
    [
        (b"<html>log in</html>", "not the answer of a package index"),
        (b"[]", "not the answer of a package index"),
        (b'{"files": [{"filename": "other.whl", "url": "x"}]}', f"has no {WHEEL}"),
    ],
)
def test_what_an_index_may_answer_instead(index: Index, page: bytes, said: str) -> None:
    index.page = page
    with pytest.raises(PackageError, match=said):
        fetch_package(PACKAGE)


def test_a_server_that_refuses_is_named(index: Index) -> None:
    index.status = 403
    with pytest.raises(PackageError, match=r"a-model 1\.0: http://127.*whl answered 403"):
        fetch_package(PACKAGE)


@pytest.mark.parametrize(
    "address, said",
    [
        ("http://127.0.0.1:9", "http://127.0.0.1:9 cannot be reached .*refused"),
        ("simple", "PIP_INDEX_URL: got simple, expected"),
    ],
)
def test_no_index_is_one_line(index: Index, monkeypatch: pytest.MonkeyPatch, address: str, said: str) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", address)
    with pytest.raises(PackageError, match=said):
        fetch_package(PACKAGE)


def test_a_cache_that_cannot_be_written_is_named(index: Index, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PackageError, match=r"a-model 1\.0: .*file.*Not a directory"):
        fetch_package(PACKAGE, tmp_path / "file")


def test_a_second_run_is_refused(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(folder()), monkeypatch.context() as other:
        other.setattr("mtpd_mlx.files.lock._held", set())  # as another process sees it
        with pytest.raises(PackageError, match="another run is fetching it"):
            fetch_package(PACKAGE)


@pytest.mark.parametrize(
    "env, expected",
    [({"MTPD_CACHE": "/a"}, "/a"), ({"XDG_CACHE_HOME": "/b"}, "/b/mtpd"), ({}, "/home/me/.cache/mtpd")],
)
def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], expected: str) -> None:
    for name in ("MTPD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **env}.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_the_pinned_package_agrees_with_itself() -> None:
    assert SMOLLM2.wheel.startswith(f"{SMOLLM2.name.replace('-', '_')}-{SMOLLM2.version}-")
    assert all(len(bytes.fromhex(digest)) == 32 for digest in (SMOLLM2.wheel_sha256, SMOLLM2.member_sha256))
    assert without_login("https://a:b@c/d") == "https://c/d"
