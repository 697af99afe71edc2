"""A small client for any OpenAI-compatible chat endpoint: retries, rate limit, timeout, cost.

The optional `openai` package is imported when a client is made. Its own retries are off: retries here
also cover broken and empty answers, and respect the rate limit and the budget.
"""

import json
import os
import random
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable

from common.user_error import UserError

INSTALL_COMMAND = "pip install 'openai>=1.40'"
BACKOFF_BASE_S = 1.0
RETRIED_STATUSES = frozenset({408, 409, 425, 429})
FATAL_STATUSES = frozenset({401, 403, 404})
MAX_ERROR_CHARACTERS = 300
MAX_ANSWER_BYTES = 16 * 2**20
MAX_TOKENS = 2**40
"""Token counts from here on are not believed."""
MIN_KEY_CHARACTERS = 8
"""A shorter key is a placeholder, perhaps a common word, and is not masked in answers."""


class LlmError(UserError, RuntimeError):
    """No request can succeed: the package, the key, the model name or a setting is wrong."""


class LlmUnavailable(RuntimeError):
    """One request got no usable answer; the caller keeps what it had."""


class LlmRefused(LlmUnavailable):
    """The endpoint rejects this request, for example as too long; a retry cannot help."""


class BudgetSpent(LlmUnavailable):
    """The cost has reached `max_cost`; no further request is sent."""


@dataclass(frozen=True)
class LlmConfig:
    """Endpoint, model and limits."""

    model: str
    """Model name as the endpoint knows it."""
    base_url: str | None = None
    """Such as http://127.0.0.1:8000/v1; None takes the `openai` package's default."""
    api_key: str | None = None
    """None for local servers that need no key."""
    timeout_s: float = 60.0
    """Longest wait for an answer, in seconds."""
    max_attempts: int = 5
    """Requests per answer at most."""
    max_wait_s: float = 30.0
    """Longest pause before a retry, in seconds; also caps the server's Retry-After."""
    requests_per_minute: float = 60.0
    """Retries included; 0 means no limit."""
    num_workers: int = 4
    """Concurrent requests."""
    temperature: float | None = 0.8
    """Sampling temperature; None omits the field, which some reasoning models reject."""
    input_price: float = 0.0
    """US dollars per million prompt tokens."""
    output_price: float = 0.0
    """US dollars per million completion tokens."""
    max_cost: float | None = None
    """US dollars after which no request is sent; None means no limit."""

    def __post_init__(self) -> None:
        if not self.model:
            raise LlmError(
                "no model name: give --llm-model or set TASK_LLM_MODEL (and OPENAI_BASE_URL, "
                "OPENAI_API_KEY for the endpoint)"
            )
        for name in ("timeout_s", "max_attempts", "num_workers"):
            if not getattr(self, name) > 0:
                raise LlmError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("max_wait_s", "requests_per_minute", "input_price", "output_price"):
            if not getattr(self, name) >= 0:
                raise LlmError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.max_cost is not None and self.input_price == 0 and self.output_price == 0:
            raise LlmError("max_cost needs input_price or output_price, or nothing is counted")

    @classmethod
    def from_environment(cls, **overrides: Any) -> "LlmConfig":
        """Return a config whose model, URL and key come from the environment unless given.

        Raises:
            LlmError: No model is named, or a field is out of range.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        found = {
            "model": os.environ.get("TASK_LLM_MODEL", ""),
            "base_url": os.environ.get("OPENAI_BASE_URL") or None,
            "api_key": os.environ.get("OPENAI_API_KEY") or None,
        }
        return cls(**overrides | found | given)


@dataclass
class LlmUsage:
    """Requests, tokens (as the endpoint reports them) and cost so far."""

    num_requests: int = 0
    """Retries included."""
    num_retries: int = 0
    num_unanswered: int = 0
    """Requests given up after all attempts."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """US dollars at the config's prices."""

    def __str__(self) -> str:
        return (
            f"{self.num_requests} requests ({self.num_retries} retries, {self.num_unanswered} "
            f"unanswered), {self.prompt_tokens} + {self.completion_tokens} tokens, "
            f"{self.cost:.4f} US dollars"
        )


class RateLimiter:
    """Spaces the requests of all threads evenly."""

    def __init__(
        self, requests_per_minute: float, clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._gap_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._next_s = float("-inf")
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Block until the next request may start."""
        with self._lock:
            now = self._clock()
            start = max(now, self._next_s)
            self._next_s = start + self._gap_s
        if start > now:
            self._sleep(start - now)


class ChatClient:
    """A client of one endpoint; thread-safe.

    Args:
        sleep: Replaced in tests to observe the waits.

    Raises:
        LlmError: The `openai` package is not installed.
    """

    def __init__(self, config: LlmConfig, sleep: Callable[[float], None] = time.sleep) -> None:
        try:
            import openai
        except ImportError as error:
            raise LlmError(f"the LLM steps need the openai package: {INSTALL_COMMAND}") from error
        self.config = config
        self.usage = LlmUsage()
        self._openai = openai
        self._client = openai.OpenAI(
            base_url=config.base_url, api_key=config.api_key or "none", timeout=config.timeout_s,
            max_retries=0,
        )
        self._limiter = RateLimiter(config.requests_per_minute, sleep=sleep)
        self._sleep = sleep
        self._jitter = random.Random(0)
        self._lock = threading.Lock()

    def ask(self, messages: list[dict[str, str]], model: str | None = None) -> str:
        """Return the text of the answer to chat messages, by the config's model or another of the endpoint.

        Raises:
            LlmUnavailable: No usable answer after `max_attempts` requests, or the request is rejected.
            BudgetSpent: The cost has reached `max_cost`.
            LlmError: The endpoint rejects the key or the model name.
        """
        message = self._answer({"model": model or self.config.model, "messages": messages}, words=True)
        return message["content"]

    def converse(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Return the model's next message in a conversation with tools, all in OpenAI's form.

        Returns:
            `content` and `tool_calls` as the endpoint sent them, possibly empty; also
            `num_prompt_tokens` and `num_tokens` (read and written) if it reports them.

        Raises:
            LlmUnavailable, BudgetSpent, LlmError: As `ask`.
        """
        request = {"model": self.config.model, "messages": messages, "tools": tools}
        return self._answer(request, words=False)

    def _answer(self, request: dict[str, Any], words: bool) -> dict[str, Any]:
        """Retry until the endpoint sends a message, with text if `words` is set."""
        # No token limit is sent: providers disagree on the field's name and reject the other one.
        if self.config.temperature is not None:
            request["temperature"] = self.config.temperature
        failure = ""
        for attempt in range(self.config.max_attempts):
            if attempt:
                with self._lock:
                    self.usage.num_retries += 1
            message, failure, retry_after_s = self._attempt(request)
            text = message.get("content")
            if not failure and words and not (isinstance(text, str) and text.strip()):
                failure = "the answer is empty"
            if not failure:
                return message
            if attempt + 1 < self.config.max_attempts:
                self._sleep(self._pause_s(attempt, retry_after_s))
        with self._lock:
            self.usage.num_unanswered += 1
        raise LlmUnavailable(f"no answer after {self.config.max_attempts} attempts: {failure}")

    def _attempt(self, request: dict[str, Any]) -> tuple[dict[str, Any], str, float | None]:
        """Send one request; return (message, failure, seconds the server asks us to wait)."""
        budget = self.config.max_cost
        if budget is not None and self.usage.cost >= budget:
            raise BudgetSpent(f"budget spent: {self.usage.cost:.4f} of {budget} US dollars")
        self._limiter.wait()
        with self._lock:
            self.usage.num_requests += 1
        ask = self._client.chat.completions.with_streaming_response.create
        try:
            with ask(**request) as response:
                body, failure = self._body(response)
        except self._openai.APITimeoutError:
            return {}, f"time-out after {self.config.timeout_s:g} s", None
        except self._openai.APIConnectionError as error:
            return {}, f"connection failed ({error.__cause__ or error})", None
        except self._openai.APIStatusError as error:
            status = error.status_code
            if status in FATAL_STATUSES:
                raise LlmError(
                    f"{self._client.base_url} refuses key or model: {self._line(error)}"
                ) from error
            if status < 500 and status not in RETRIED_STATUSES:
                raise LlmRefused(f"request refused: {self._line(error)}") from error
            return {}, f"HTTP {status}", _seconds(error.response.headers.get("retry-after"))
        return ({}, failure, None) if failure else self._read(body)

    def _body(self, response: Any) -> tuple[str, str]:
        """Return an answer's text with the key masked, and what is wrong with it ("" if nothing)."""
        until, parts, size = time.monotonic() + self.config.timeout_s, [], 0
        try:
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > MAX_ANSWER_BYTES:
                    return "", f"the answer is longer than {MAX_ANSWER_BYTES} bytes"
                if time.monotonic() > until:
                    return "", f"time-out after {self.config.timeout_s:g} s"
        except Exception as error:  # httpx's or httpx2's, whichever this openai brings
            return "", f"connection failed ({error})"
        text, key = b"".join(parts).decode("utf-8", "replace"), self.config.api_key or ""
        return text.replace(key, "(key)") if len(key) >= MIN_KEY_CHARACTERS else text, ""

    def _line(self, error: Exception) -> str:
        """Return an endpoint's error as one bounded line with the key masked."""
        text = " ".join(str(error).split())
        return text.replace(self.config.api_key or "\0", "(key)")[:MAX_ERROR_CHARACTERS]

    def _read(self, body: str) -> tuple[dict[str, Any], str, None]:
        """Return an answer's message, the failure and None, as `_attempt`; count its tokens."""
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            return {}, "the answer is not JSON", None
        if not isinstance(answer, dict):
            return {}, "the answer is not a JSON object", None
        tokens = self._count(answer.get("usage"))
        try:
            message = answer["choices"][0]["message"]
        except (KeyError, IndexError, TypeError):
            message = None
        if not isinstance(message, dict):
            return {}, "the answer has no message", None
        counted = {"num_prompt_tokens": tokens[0], "num_tokens": tokens[1]} if tokens else {}
        return {key: message.get(key) for key in ("content", "tool_calls")} | counted, "", None

    def _count(self, usage: Any) -> tuple[int, int] | None:
        """Add an answer's tokens and cost; return the tokens read and written, None if not reported."""
        if not isinstance(usage, dict):
            return None
        tokens = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
        num_in, num_out = (v if type(v) is int and 0 < v < MAX_TOKENS else 0 for v in tokens)
        price = num_in * self.config.input_price + num_out * self.config.output_price
        with self._lock:
            self.usage.prompt_tokens += num_in
            self.usage.completion_tokens += num_out
            self.usage.cost += price / 1e6
        return num_in, num_out

    def _pause_s(self, attempt: int, retry_after_s: float | None) -> float:
        """Return the server's Retry-After, else exponential backoff with jitter, up to `max_wait_s`."""
        if retry_after_s is None:
            with self._lock:
                retry_after_s = BACKOFF_BASE_S * 2**attempt * self._jitter.uniform(0.75, 1.25)
        return min(retry_after_s, self.config.max_wait_s)


def _seconds(header: str | None) -> float | None:
    """Read a Retry-After header in seconds; the date form is ignored."""
    try:
        seconds = float(header) if header is not None else None
    except ValueError:
        return None
    return seconds if seconds is not None and 0 <= seconds < float("inf") else None
