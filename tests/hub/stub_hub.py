"""A hub on this machine that speaks the protocol of huggingface.co as far as pulling, looking and pushing go."""

import base64
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

SHA = hashlib.sha1(b"main").hexdigest()


@dataclass
class Repository:
    files: dict[str, bytes] = field(default_factory=dict)
    gated: bool = False
    revisions: tuple[str, ...] = ("main", SHA)
    lfs: tuple[str, ...] = (".safetensors", ".bin", ".onnx")


@dataclass
class Hub:
    """`cut`: bytes of a large file after which the connection is lost, while `broken`; `seen`: (method, path, range, auth)."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    seen: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    cut: int | None = None
    broken: bool = False
    failing: int | None = None  # the status that downloads of large files get
    down: bool = False  # nothing works
    pause: float = 0.0  # seconds in the middle of a large file
    url: str = ""


def serve(hub: Hub) -> ThreadingHTTPServer:
    """Runs until server.shutdown()."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def do_PUT(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlparse(self.path).path)
            hub.seen.append((self.command, path, self.headers.get("Range"), self.headers.get("Authorization")))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if hub.down:
                return self.fail(503, "Unavailable")
            for pattern, action in ROUTES:
                if (match := re.fullmatch(pattern, path)) is not None:
                    return action(self, *match.groups(), body=body)
            return self.fail(404, "RepoNotFound")

        def reply(self, values: Any, status: int = 200) -> None:
            data = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def fail(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def find(self, name: str, revision: str = "main") -> Repository | None:
            found = hub.repositories.get(name)
            if found is None:
                self.fail(401, "RepoNotFound")
            elif revision not in found.revisions:
                self.fail(404, "RevisionNotFound")
            else:
                return found
            return None

        def info(self, name: str, revision: str | None = None, body: bytes = b"") -> None:
            if (found := self.find(name, revision or "main")) is not None:
                siblings = [{"rfilename": n, "size": len(b), "blobId": git(b)} for n, b in found.files.items()]
                self.reply({"id": name, "modelId": name, "sha": SHA, "siblings": siblings, "private": False, "tags": []})

        def tree(self, name: str, revision: str, body: bytes = b"") -> None:
            if (found := self.find(name, revision)) is not None:
                self.reply([{"type": "file", "path": n, "size": len(b), "oid": git(b)} for n, b in found.files.items()])

        def resolve(self, name: str, revision: str, file: str, body: bytes = b"") -> None:
            found = self.find(name, revision)
            if found is None:
                return None
            if found.gated and not (self.headers.get("Authorization") or "").endswith("hf_welcome1234567"):
                return self.fail(403, "GatedRepo")
            if file not in found.files:
                return self.fail(404, "EntryNotFound")
            return self.send_file(found.files[file], len(found.files[file]) > 4096)

        def send_file(self, data: bytes, large: bool) -> None:
            if large and hub.failing and self.command == "GET":
                return self.fail(hub.failing, "ServerError")
            first, last = 0, len(data) - 1
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if wanted:
                first, last = int(wanted[1]), min(int(wanted[2] or last), last)
            part = data[first : last + 1]
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", SHA)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if self.command == "HEAD":
                return None
            if large and hub.cut is not None:
                self.wfile.write(part[: hub.cut])
                self.wfile.flush()
                self.close_connection, hub.cut, hub.failing = True, None, 500
                return None
            half = len(part) // 2 if large else 0
            self.wfile.write(part[:half])
            time.sleep(hub.pause if large else 0)
            self.wfile.write(part[half:])
            return None

        def create(self, body: bytes = b"") -> None:
            values = json.loads(body)
            name = f"{values['organization']}/{values['name']}" if values.get("organization") else values["name"]
            if name in hub.repositories:
                return self.reply({"error": "exists", "url": f"{hub.url}/{name}"}, 409)
            hub.repositories[name] = Repository({".gitattributes": b""})
            return self.reply({"url": f"{hub.url}/{name}", "name": name, "id": name})

        def validate(self, body: bytes = b"") -> None:
            front = json.loads(body)["content"].split("---")[1]
            self.reply({"errors": [] if "base_model:" in front else [{"message": "no base_model"}], "warnings": []})

        def whoami(self, body: bytes = b"") -> None:
            self.reply({"name": "me", "type": "user", "orgs": []})

        def preupload(self, name: str, revision: str, body: bytes = b"") -> None:
            if (found := self.find(name, revision)) is not None:
                modes = [
                    {
                        "path": f["path"],
                        "uploadMode": "lfs" if f["path"].endswith(found.lfs) else "regular",
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for f in json.loads(body)["files"]
                ]
                self.reply({"files": modes})

        def batch(self, name: str, body: bytes = b"") -> None:
            objects = [o | {"actions": {"upload": {"href": f"{hub.url}/lfs/{o['oid']}"}}} for o in json.loads(body)["objects"]]
            self.reply({"transfer": "basic", "objects": objects})

        def store(self, oid: str, body: bytes = b"") -> None:
            assert hashlib.sha256(body).hexdigest() == oid
            hub.objects[oid] = body
            self.reply({})

        def commit(self, name: str, revision: str, body: bytes = b"") -> None:
            found = self.find(name, revision)
            if found is None:
                return
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    found.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "lfsFile":
                    found.files[entry["value"]["path"]] = hub.objects[entry["value"]["oid"]]
            self.reply({"commitUrl": f"{hub.url}/{name}/commit/{SHA}", "commitOid": SHA, "hookOutput": ""})

    owner = r"([^/]+/[^/]+)"
    ROUTES = [
        (rf"/api/models/{owner}/revision/([^/]+)", Handler.info),
        (rf"/api/models/{owner}/tree/([^/]+)", Handler.tree),
        (rf"/api/models/{owner}/preupload/([^/]+)", Handler.preupload),
        (rf"/api/models/{owner}/commit/([^/]+)", Handler.commit),
        (rf"/api/models/{owner}", Handler.info),
        (r"/api/repos/create", Handler.create),
        (r"/api/validate-yaml", Handler.validate),
        (r"/api/whoami-v2", Handler.whoami),
        (rf"/{owner}\.git/info/lfs/objects/batch", Handler.batch),
        (rf"/{owner}/resolve/([^/]+)/(.+)", Handler.resolve),
        (r"/lfs/([0-9a-f]+)", Handler.store),
    ]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(
        target=server.serve_forever, args=(0.01,), daemon=True
    ).start()  # how often it looks for shutdown(): seconds
    return server


def git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
