"""A provider's batch API on loopback: takes a file of calls, answers them as a script says, and counts what it did.

with BatchServer(script) as server:
    BatchClient(LLMClient(base_url=server.base_url, ...), ...)
"""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tests.scripted_server import Call, Reply, Script, echo


class BatchServer:
    """Serves in a thread of its own for as long as its `with` block lasts.

    Args:
        polls: so many looks at a batch find it under way.
        before_answer: told of each request (`"POST /batches"`) once it has taken effect, before it is answered.
    """

    def __init__(
        self,
        script: Script = echo,
        *,
        polls: int = 1,
        before_answer: Callable[[str], None] = lambda path: None,
    ) -> None:
        self.script = script
        self.polls = polls
        self.before_answer = before_answer
        self.files: dict[str, str] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.answered: Counter[str] = Counter()
        """Calls answered, by their id."""
        self._looks: Counter[str] = Counter()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                try:
                    self._answer(server.get(self.path.partition("?")[0].removeprefix("/v1")))
                except KeyError as error:
                    self._answer({"error": {"message": f"no {error.args[0]}"}}, status=404)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                self._answer(server.post(self.path.removeprefix("/v1"), body))

            def _answer(self, value: Any, status: int = 200) -> None:
                server.before_answer(f"{self.command} {self.path.removeprefix('/v1')}")
                content = (value if isinstance(value, str) else json.dumps(value)).encode()
                self.send_response(status)
                self.send_header(
                    "Content-Type", "text/plain" if isinstance(value, str) else "application/json"
                )
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def get(self, path: str) -> Any:
        if path == "/batches":
            return {"object": "list", "data": list(self.batches.values()), "has_more": False}
        if match := re.fullmatch(r"/files/(\S+)/content", path):
            return self.files[match[1]]
        batch = self.batches[path.removeprefix("/batches/")]
        self._looks[batch["id"]] += 1
        if batch["status"] != "completed":
            num_calls = len(self.files[batch["input_file_id"]].splitlines())
            num_done = num_calls * self._looks[batch["id"]] // (self.polls + 1)
            batch["request_counts"] = {"completed": num_done, "failed": 0, "total": num_calls}
            if self._looks[batch["id"]] > self.polls:
                self._complete(batch)
        return batch

    def post(self, path: str, body: str) -> Any:
        if path == "/files":
            file_id = f"file-{len(self.files)}"
            self.files[file_id] = "\n".join(
                line for line in body.splitlines() if line.startswith('{"custom_id"')
            )
            return {
                "id": file_id, "object": "file", "bytes": 1, "created_at": 0, "filename": "f", "purpose": "batch",
                "status": "processed",
            }  # fmt: skip
        batch_id = f"batch-{len(self.batches)}"
        self.batches[batch_id] = {
            "id": batch_id, "object": "batch", "created_at": int(time.time()), "status": "in_progress",
            **json.loads(body),
        }  # fmt: skip
        return self.batches[batch_id]

    def _complete(self, batch: dict[str, Any]) -> None:
        lines: dict[str, list[str]] = {"output": [], "error": []}
        for number, line in enumerate(self.files[batch["input_file_id"]].splitlines(), start=1):
            asked = json.loads(line)
            call = Call(number=number, nth=1, headers={}, body=asked["body"])
            reply: Reply = self.script(call)
            self.answered[asked["custom_id"]] += reply.is_sound
            response = {"status_code": reply.status, "body": json.loads(reply.body(call))}
            record = {"custom_id": asked["custom_id"], "response": response, "error": None}
            lines["output" if reply.status == 200 else "error"].append(json.dumps(record))
        for name, written in lines.items():
            if written:
                self.files[f"{batch['id']}-{name}"] = "\n".join(written)
                batch[f"{name}_file_id"] = f"{batch['id']}-{name}"
        num_failed = len(lines["error"])
        batch["request_counts"] |= {"completed": len(lines["output"]), "failed": num_failed}
        batch["status"] = "completed"
