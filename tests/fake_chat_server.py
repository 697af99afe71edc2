"""A chat endpoint on loopback whose answers a test writes: replies, errors, delays, bad bodies."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks.llm.client import LlmConfig

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Reply:
    """What the server sends back for one request."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    delay_s: float = 0.0
    tokens: tuple[int, int] = (10, 5)

    def payload(self) -> bytes:
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": {"message": f"fault {self.status}"}}).encode()
        usage = {"prompt_tokens": self.tokens[0], "completion_tokens": self.tokens[1]}
        message = {"role": "assistant", "content": self.text}
        answer = {"model": "toy", "choices": [{"message": message}], "usage": usage}
        return json.dumps(answer).encode()


class FakeChatServer:
    """Answers each request by `script(request)`; `requests` holds the parsed bodies."""

    def __init__(self, script: Callable[[dict], Reply]) -> None:
        self.requests: list[dict] = []
        self.keys: list[str | None] = []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append(body)
                    outer.keys.append(self.headers.get("Authorization"))
                    reply = script(body)
                time.sleep(reply.delay_s)
                payload = reply.payload()
                try:
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(payload)))
                    self.end_headers()
                    self.wfile.write(payload)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client has given up, as a time-out test wants

            def log_message(self, *_args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        # Looks every 20 ms whether it must stop, so that a test does not wait half a second.
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "FakeChatServer":
        pytest.importorskip("openai", reason="the optional openai package is not installed")
        self._thread.start()
        return self

    def __exit__(self, *_args: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def config(server: FakeChatServer, **fields: object) -> LlmConfig:
    """Return a config for the server that waits little and gives up soon."""
    settings = {
        "model": "toy", "base_url": server.base_url, "requests_per_minute": 0, "max_wait_s": 0.02,
        "max_attempts": 3, "timeout_s": 5, "num_workers": 2,
    }
    return LlmConfig(**{**settings, **fields})


def in_turn(*replies: Reply) -> Callable[[dict], Reply]:
    """Answer with the replies one after the other, the last one for ever."""
    left = list(replies)
    return lambda _request: left.pop(0) if len(left) > 1 else left[0]


def interrupt(command: list[str], is_time: Callable[[], bool]) -> tuple[int, str, float]:
    """Start a command of task_tester.py, send it SIGINT once `is_time()`; return exit code, stderr and seconds."""
    process = subprocess.Popen(
        [sys.executable, "task_tester.py", *command], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        # A shell starts background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), stdout=subprocess.DEVNULL,
    )
    while not is_time():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    try:
        error = process.communicate(timeout=20)[1]
    finally:
        process.kill()
    return process.returncode, error, time.monotonic() - began
