"""A hub of models and data sets on this machine: what the Hugging Face libraries ask for, answered from a folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(BaseHTTPRequestHandler):
    """`models/OWNER/NAME/...` and `datasets/OWNER/NAME/...` under `root`; owner `gated` has a licence to accept."""

    protocol_version = "HTTP/1.1"
    root: Path
    asked: list[str]

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_GET

    def _answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        path = unquote(urlsplit(self.path).path).strip("/")
        self.asked.append(f"{self.command} {path}")
        words = path.split("/")
        asks = words[0] == "api"
        words = words[asks:]
        kind = words.pop(0) if words[0] in ("models", "datasets") else "models"
        folder = self.root / kind / "/".join(words[:2])
        if not folder.is_dir():
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        action, place = (words[2] if len(words) > 2 else ""), "/".join(words[4:])
        if action == "resolve" and words[0] == "gated":
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        if asks and action in ("", "revision"):
            return self._say(self._about(folder, "/".join(words[:2])))
        if asks and action == "tree":
            return self._say([self._entry(folder, p) for p in self._files(folder / place)])
        if asks and action == "paths-info":
            wanted = json.loads(sent)["paths"] if sent.startswith("{") else parse_qs(sent)["paths"]
            return self._say([self._entry(folder, folder / p) for p in wanted if (folder / p).exists()])
        file = folder / place
        if action != "resolve" or not file.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = file.read_bytes()
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        return self._send(206 if "Range" in self.headers else 200, data[start:], {
            "ETag": f'"{_mark(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes",
            **({"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if "Range" in self.headers else {}),
        })  # fmt: skip

    def _files(self, folder: Path) -> list[Path]:
        return sorted(p for p in folder.rglob("*") if p.is_file())

    def _entry(self, folder: Path, path: Path) -> dict:
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "0" * 40}
        return {"type": "file", "path": name, "size": path.stat().st_size, "oid": _mark(path)}

    def _about(self, folder: Path, name: str) -> dict:
        names = [{"rfilename": p.relative_to(folder).as_posix()} for p in self._files(folder)]
        return {"id": name, "sha": COMMIT, "siblings": names, "private": False, "gated": False, "disabled": False,
                "tags": [], "downloads": 0, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z"}  # fmt: skip

    def _say(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


def _mark(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextlib.contextmanager
def hub(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve `root`; gives the address and the list of what was asked."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"root": root, "asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
