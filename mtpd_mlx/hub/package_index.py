"""`address_of`: where a package index has a file (PEP 503 and PEP 691).
Called by hub/packages.py."""

import base64
import json
import os
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit
from urllib.request import BaseHandler, OpenerDirector, Request

PYPI = "https://pypi.org/simple"
KINDS = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"


class LookupFailed(Exception):
    """One line: what the index answered."""


def index_address() -> str:
    """The simple index that pip is told to use by PIP_INDEX_URL, else PyPI."""
    return (os.environ.get("PIP_INDEX_URL") or PYPI).rstrip("/")


def address_of(name: str, file: str, index: str, opener: OpenerDirector, timeout: float) -> str:
    """The address of `file` of the package `name`. LookupFailed where the index has no such file, or no such answer; OSError
    where it cannot be reached."""
    page = f"{index}/{name}/"
    with opener.open(Request(page, headers={"Accept": KINDS}), timeout=timeout) as answer:
        content = answer.read()
        is_json = "json" in answer.headers.get("Content-Type", "")
        page = answer.url  # after redirects
    try:
        links = _json_links(json.loads(content)) if is_json else _html_links(content.decode())
    except (ValueError, KeyError, TypeError):
        raise LookupFailed(f"{without_login(page)}: not the answer of a package index") from None
    if file not in links:
        raise LookupFailed(f"{without_login(index)} has no {file}")
    return _with_login(urljoin(page, links[file]), index)


def without_login(address: str) -> str:
    """The address without user and password, for messages."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _with_login(address: str, index: str) -> str:
    """Files on the index's own host need its login, others must not see it."""
    ours, theirs = urlsplit(index), urlsplit(address)
    if "@" in ours.netloc and ours.netloc.rpartition("@")[2] == theirs.netloc and ours.scheme == theirs.scheme:
        return urlunsplit(theirs._replace(netloc=ours.netloc))
    return address


def _json_links(values: Any) -> dict[str, str]:
    return {str(entry["filename"]): str(entry["url"]) for entry in values["files"]}


def _html_links(text: str) -> dict[str, str]:
    parser = _Links()
    parser.feed(text)
    return parser.found


class _Links(HTMLParser):
    """File name -> address, of the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a" and (address := dict(attrs).get("href")):
            address = urldefrag(address).url
            self.found[unquote(urlsplit(address).path).rpartition("/")[2]] = address


class _Login(BaseHandler):
    """user:password@ of an address as the header that carries it, which urllib leaves to its caller."""

    handler_order = 100

    def _request(self, request: Request) -> Request:
        parts = urlsplit(request.full_url)
        login, at, host = parts.netloc.rpartition("@")
        if at:
            request.full_url = urlunsplit(parts._replace(netloc=host))
            request.host = host
            token = base64.b64encode(unquote(login).encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {token}")
        return request

    http_request = https_request = _request


ANSWERS = (_Login(),)
