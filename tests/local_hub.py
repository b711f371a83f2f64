"""A Hub on this machine: as much of its protocol as the real client needs to download models and to read datasets.

What it holds is a list of commits, what it was asked is a list of requests, and what goes wrong is a list of faults.
The protocol is the one that huggingface_hub 2.4 speaks (file_download.py, utils/_http.py): HEAD gives the commit, the
hash and the size of a file, and for a large one the place of its content, which is on another host. Of a dataset, which
is called datasets/OWNER/NAME here, it says the commit of a revision, and what a folder of it holds (hf_api.py).
"""

import json
import re
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

# Kept in Git LFS, named by their SHA-256 and served by another host.
LARGE = (".safetensors", ".bin", ".pt", ".parquet", ".zst", ".gz")


class Request(NamedTuple):
    method: str
    repo: str
    revision: str  # of the content of a large file: its hash, which is all that its host knows
    file: str
    start: int  # the first byte asked for
    token: str | None


@dataclass
class Fault:
    """What the requests that match it get in place of a right answer, so many times."""

    path: str = "*"  # of the repository and the file in it
    method: str = "*"
    times: int = sys.maxsize
    after: int = 0  # so many requests that match are answered rightly
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None  # in place of the file's, under the file's own size and hash if there is no status
    cut: int | None = None  # the connection breaks after so many bytes
    silent: bool = False  # nothing more after those bytes, or at all, until the Hub stops

    def strikes(self, request: Request) -> bool:
        path = f"{request.repo}/{request.file}"
        if not (fnmatchcase(path, self.path) and fnmatchcase(request.method, self.method) and self.times):
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


class LocalHub:
    """Repositories of models on http://127.0.0.1, at `url`; use it in a `with`."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Path]] = {}  # of each repository: a commit -> the folder of its files
        self.refs: dict[str, dict[str, str]] = {}  # branches and tags -> the commit
        self.moved: dict[str, str] = {}  # old names of repositories
        self.members: dict[str, set[str]] = {}  # of each gated repository: the tokens that open it
        self.lies: dict[str, str] = {}  # paths in a listing -> what it names in their place
        self.faults: list[Fault] = []
        self.asked: list[Request] = []
        self.stopped = threading.Event()

    def push(self, repo: str, folder: Path, *refs: str) -> str:
        """A commit with the files of a folder, to which these branches and tags (by default main) point from now on."""
        commits = self.commits.setdefault(repo, {})
        commit = sha1(f"{repo} {len(commits)}".encode()).hexdigest()
        commits[commit] = folder
        self.refs.setdefault(repo, {}).update(dict.fromkeys(refs or ("main",), commit))
        return commit

    def downloads(self) -> list[str]:
        """The files of which the content was asked for."""
        return [request.file for request in self.asked if request.method == "GET"]

    def __enter__(self) -> "LocalHub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        hosts = "127.0.0.1", "localhost"  # by name, since clients before 2.4 tell hosts apart without their ports
        self.url, self.cdn = (
            f"http://{host}:{server.server_port}" for host, server in zip(hosts, self._servers, strict=True)
        )
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """From now on nobody listens."""
        self.stopped.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub

    def do_HEAD(self) -> None:
        self.respond()

    def do_GET(self) -> None:
        self.respond()

    def log_message(self, *_: Any) -> None:
        pass

    def respond(self) -> None:
        if api := re.fullmatch(r"/api/(datasets/[^/]+/[^/]+)/(revision|tree)/([^/?]+)/?(.*)", self.path):
            return self.tell(*api.groups())
        match = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", self.path)
        if not match:
            return self.answer(404)
        repo, revision, file = map(unquote, match.groups())
        start = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        self.end = int(start[2]) + 1 if start and start[2] else None
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ") or None
        request = Request(self.command, repo, revision, file, int(start[1]) if start else 0, token)
        self.hub.asked.append(request)
        fault = next((fault for fault in self.hub.faults if fault.strikes(request)), Fault())
        if fault.silent and fault.cut is None:
            self.hub.stopped.wait()
        elif fault.status:
            self.answer(fault.status, fault.headers, fault.body or b"")
        else:
            self.find(request, fault)

    def tell(self, repo: str, what: str, revision: str, rest: str) -> None:
        """The commit of a revision of a dataset, or what one of its folders holds."""
        self.hub.asked.append(Request("API", repo, unquote(revision), what, 0, None))
        fault = next((fault for fault in self.hub.faults if fault.strikes(self.hub.asked[-1])), Fault())
        if fault.status:
            return self.answer(fault.status, fault.headers, fault.body or b"")
        if repo not in self.hub.commits:
            return self.answer(401, {"X-Error-Code": "RepoNotFound"})
        commit = self.hub.refs[repo].get(unquote(revision), unquote(revision))
        if commit not in self.hub.commits[repo]:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        if what == "revision":
            said: Any = {"id": repo.removeprefix("datasets/"), "sha": commit, "siblings": []}
            return self.answer(200, {"Content-Type": "application/json"}, json.dumps(said).encode())
        root, asked = self.hub.commits[repo][commit], urlsplit(rest)
        folder = root / unquote(asked.path)
        if not folder.is_dir():
            return self.answer(404, {"X-Error-Code": "EntryNotFound"})
        is_deep = parse_qs(asked.query).get("recursive") == ["true"]
        said = [self.entry(root, path) for path in sorted(folder.rglob("*") if is_deep else folder.iterdir())]
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(said).encode())

    def entry(self, root: Path, path: Path) -> dict[str, Any]:
        """What a listing says of a file or folder."""
        name = path.relative_to(root).as_posix()
        name = self.hub.lies.get(name, name)
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
        content = path.read_bytes()
        about = {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
        if not name.endswith(LARGE):
            return about
        return about | {"lfs": {"oid": sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}}

    def find(self, request: Request, fault: Fault) -> None:
        """The file that is asked for, or the reason why there is none."""
        hub, (_, repo, revision, file, _, token) = self.hub, request
        if repo in hub.moved:
            return self.answer(307, {"Location": f"/{hub.moved[repo]}/resolve/{quote(revision, safe='')}/{file}"})
        if repo not in hub.commits:
            return self.answer(404 if token else 401, {"X-Error-Code": "RepoNotFound"})
        on_cdn = self.server.server_port == int(hub.cdn.rpartition(":")[2])  # type: ignore[attr-defined]
        if repo in hub.members and token not in hub.members[repo] and not on_cdn:
            return self.answer(403 if token else 401, {"X-Error-Code": "GatedRepo"})
        commit = hub.refs[repo].get(revision, revision)
        if commit not in hub.commits[repo]:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        path = hub.commits[repo][commit] / file
        if not path.is_file():
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = path.read_bytes()
        if not file.endswith(LARGE):
            etag = sha1(b"blob %d\0" % len(content) + content).hexdigest()
            self.send(content, request.start, {"X-Repo-Commit": commit, "ETag": f'"{etag}"', **fault.headers}, fault)
        elif not on_cdn:
            about = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{sha256(content).hexdigest()}"'}
            location = f"{hub.cdn}/{repo}/resolve/{commit}/{quote(file)}"
            self.answer(302, {"X-Repo-Commit": commit, "Location": location, **about, **fault.headers})
        else:
            self.send(content, request.start, fault.headers, fault)

    def send(self, content: bytes, start: int, headers: Mapping[str, str], fault: Fault) -> None:
        """The content from this byte on."""
        if start >= len(content) > 0:
            return self.answer(416, {"Content-Range": f"bytes */{len(content)}"})
        body = content if fault.body is None else fault.body
        end = min(len(body), self.end or len(body))
        is_part = start > 0 or self.end is not None
        partial = {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"} if is_part else {}
        self.answer(206 if is_part else 200, {**headers, **partial}, body[start:end], fault.cut)
        if fault.silent:
            self.hub.stopped.wait()

    def answer(
        self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"", cut: int | None = None
    ) -> None:
        self.send_response(status)
        for header in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(*header)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
