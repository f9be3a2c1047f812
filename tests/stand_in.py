"""A stand-in for W&B's server, as far as runs go: it answers what wandb asks when a run is sent, keeps what it is sent, and forgets what
it had of a run that begins anew at its first line. It is no W&B: that a real server does the same is not shown by it."""

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789" * 4


class StandIn:
    """runs   by id: what each was opened with, `opened` how often, and the files of its stream, by their names and lines
    views  by name: the workspaces that were saved
    asked  the names of what was asked of GraphQL, in order
    gone   ids of runs that were deleted, which it refuses as W&B does"""

    def __init__(self, url: str):
        self.url = url
        self.runs: dict[str, dict[str, Any]] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.gone: set[str] = set()

    def graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        name = re.search(r"(?:query|mutation) (\w+)", query)
        self.asked.append(name[1] if name else query[:60])
        entity, project = {"name": "us", "id": "e"}, given.get("project") or given.get("modelName") or "p"
        if "upsertBucket" in query:
            run = self.runs.setdefault(given["name"], {"files": {}, "opened": 0})
            run["opened"] += given.get("displayName") is not None
            run |= {key: value for key, value in given.items() if value is not None}
            bucket = {
                "id": given["name"],
                "name": given["name"],
                "displayName": given.get("displayName"),
                "historyLineCount": 0,
                "project": {"id": "p", "name": project, "entity": {"id": "e", "name": "us"}},
            }
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "upsertView" in query:
            self.views[given["name"]] = given
            return {"upsertView": {"view": {"id": f"id of {given['name']}", "name": given["name"]}, "inserted": True}}
        if "createRunFiles" in query:
            files = [{"name": f, "uploadUrl": f"{self.url}/upload"} for f in given["files"]]
            return {"createRunFiles": {"runID": given.get("run"), "uploadHeaders": [], "files": files}}
        if "createArtifact(" in query:  # of a table: it says that it has it, and is sent the table's file alone
            latest = {"id": "a", "versionIndex": 0}
            artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s", "latestArtifact": latest}}
            return {"createArtifact": {"artifact": artifact}}
        if "artifactType" in query:
            return {"project": None}
        if "serverInfo" in query:
            latest = {"latestVersionString": "0.31.0", "versionOnThisInstanceString": "0.70.0"}
            return {
                "serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": latest, "features": []},
                "viewer": entity,
            }
        if "viewer" in query:
            return {"viewer": {"id": "v", "entity": "us", "username": "us", "teams": {"edges": []}, "flags": "{}"}}
        return {}

    def stream(self, run: str, content: dict[str, Any]) -> None:
        for file, part in (content.get("files") or {}).items():
            lines = self.runs[run]["files"].setdefault(file, [])
            lines[part["offset"] :] = part["content"]
        if "complete" in content:
            self.runs[run]["exitcode"] = content.get("exitcode")


@contextlib.contextmanager
def serving() -> Iterator[StandIn]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            if self.path.endswith("/file_stream"):
                server.stream(self.path.split("/")[-2], body)
                self.answer({"limits": {}})
            elif self.path == "/graphql":
                given = body.get("variables") or {}
                if "upsertBucket" in body["query"] and given["name"] in server.gone:
                    why = f"run us/P/{given['name']} was previously created and deleted; try a new run name"
                    self.answer({"errors": [{"message": why}], "data": {"upsertBucket": None}}, 409)
                else:
                    self.answer({"data": server.graphql(body["query"], given)})
            else:
                server.asked.append(self.path)
                self.answer({})

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer({})

        def do_GET(self) -> None:
            server.asked.append(self.path)
            self.answer({})

        def answer(self, content: dict[str, Any], status: int = 200) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = StandIn(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
