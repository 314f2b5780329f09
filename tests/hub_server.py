"""As much of the Hugging Face hub as its client needs, on this machine: repositories, commits, downloads."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class FakeHub:
    """Repositories by their names: files by theirs, a branch each; `private` says which were made so."""

    def __init__(self) -> None:
        self.branches: dict[tuple[str, str], dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.read_only = False

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        return self.branches[repository, revision]

    @contextlib.contextmanager
    def serve(self, monkeypatch: pytest.MonkeyPatch, cache: Any) -> Iterator[None]:
        """Let the client talk to this hub, with a cache of its own."""
        from huggingface_hub import constants

        handler = type("Handler", (_Handler,), {"hub": self})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            endpoint = f"http://127.0.0.1:{server.server_port}"
            monkeypatch.setattr(constants, "ENDPOINT", endpoint)
            monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
            monkeypatch.setattr(
                constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
            )
            monkeypatch.setenv("HF_TOKEN", "hf_test")
            yield
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repository, revision = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main"
            files = self.hub.branches.get((repository, revision))
            if files is None:
                return self._say(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            siblings = [{"rfilename": name} for name in files]
            return self._say(200, {"id": repository, "sha": _commit(files), "siblings": siblings})
        return self._file(parts, body=True)

    def do_HEAD(self) -> None:
        self._file(self.path.split("?")[0].strip("/").split("/"), body=False)

    def _file(self, parts: list[str], *, body: bool) -> None:
        if len(parts) < 5 or parts[2] != "resolve":
            return self._say(404, {"error": "Not found"})
        repository, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        found = {
            commit: files
            for (owner, branch), files in self.hub.branches.items()
            if owner == repository
            for commit in (branch, _commit(files))
        }
        if revision not in found:
            return self._say(404, {}, {"X-Error-Code": "RevisionNotFound"})
        content = found[revision].get(name)
        if content is None:
            return self._say(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": _commit(found[revision])})
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": _commit(found[revision])}
        return self._say(200, content, headers, body=body)

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.path.split("?")[0].strip("/").split("/")
        if self.hub.read_only:
            return self._say(403, {"error": "You don't have the rights to create a model"})
        if parts == ["api", "validate-yaml"]:
            return self._say(200, {"errors": [], "warnings": []})
        if parts == ["api", "repos", "create"]:
            record = json.loads(sent)
            repository = f"{record.get('organization') or 'me'}/{record['name']}"
            if (repository, "main") in self.hub.branches:
                return self._say(409, {"url": f"https://huggingface.co/{repository}"})
            self.hub.branches[repository, "main"] = {}
            self.hub.private[repository] = record.get("private") or record.get("visibility") == "private"
            return self._say(200, {"url": f"https://huggingface.co/{repository}"})
        repository, verb, revision = "/".join(parts[2:4]), parts[4], parts[5]
        if verb == "preupload":
            entries = [
                {"path": entry["path"], "uploadMode": "regular", "shouldIgnore": False}
                for entry in json.loads(sent)["files"]
            ]
            return self._say(200, {"files": entries})
        if verb == "branch":
            self.hub.branches[repository, revision] = dict(self.hub.branches[repository, "main"])
            return self._say(200, {})
        files = self.hub.branches[repository, revision]
        for line in map(json.loads, sent.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            if line["key"] == "header":
                self.hub.messages.append(line["value"]["summary"])
        address = f"https://huggingface.co/{repository}/commit/{_commit(files)}"
        return self._say(200, {"commitUrl": address, "commitOid": _commit(files), "success": True})

    def _say(self, code: int, said: Any, headers: dict[str, str] | None = None, *, body: bool = True) -> None:
        content = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def _commit(files: dict[str, bytes]) -> str:
    return hashlib.sha1(b"".join(name.encode() + content for name, content in sorted(files.items()))).hexdigest()
