"""A small client for any OpenAI-compatible chat endpoint: retries, rate limit, time-out, cost.

The `openai` package is optional and imported only when a client is made. Its own retries are off:
here they also cover broken and empty answers, and they obey the rate limit and the budget.
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
"""A count above it is none."""
MIN_KEY_CHARACTERS = 8
"""A shorter key is a placeholder, which may be a common word."""


class LlmError(UserError, RuntimeError):
    """The LLM steps cannot work at all: package, key, model name or a setting is wrong."""


class LlmUnavailable(RuntimeError):
    """One question got no usable answer; the caller keeps what it had."""


class LlmRefused(LlmUnavailable):
    """The endpoint refuses this one question, such as one that is too long; a retry cannot help."""


class BudgetSpent(LlmUnavailable):
    """`max_cost` is reached: no further request is sent."""


@dataclass(frozen=True)
class LlmConfig:
    """Endpoint, model and bounds on requests."""

    model: str
    """Model name as the endpoint knows it."""
    base_url: str | None = None
    """Endpoint, e.g. http://127.0.0.1:8000/v1; None means the `openai` package's own default."""
    api_key: str | None = None
    """Key; None for local servers that ask for none."""
    timeout_s: float = 60.0
    """Longest wait for one answer, in seconds."""
    max_attempts: int = 5
    """Requests sent for one answer, at most."""
    max_wait_s: float = 30.0
    """Longest pause between two attempts, in seconds; bounds a server's Retry-After too."""
    requests_per_minute: float = 60.0
    """Requests started in a minute, retries included; 0 means no limit."""
    num_workers: int = 4
    """Tasks in flight at once."""
    temperature: float | None = 0.8
    """Sampling temperature; None leaves it out (some reasoning models refuse the field)."""
    input_price: float = 0.0
    """US dollars per million prompt tokens, for the cost count."""
    output_price: float = 0.0
    """US dollars per million completion tokens, for the cost count."""
    max_cost: float | None = None
    """US dollars after which no further request is sent; None means no bound."""

    def __post_init__(self) -> None:
        if not self.model:
            raise LlmError(
                "no model name: give --llm-model or set TASK_LLM_MODEL (and OPENAI_BASE_URL, "
                "OPENAI_API_KEY for the endpoint)"
            )
        for name, low in (("timeout_s", 0), ("max_attempts", 0), ("num_workers", 0)):
            if not getattr(self, name) > low:
                raise LlmError(f"{name} must be above {low}, got {getattr(self, name)}")
        for name in ("max_wait_s", "requests_per_minute", "input_price", "output_price"):
            if not getattr(self, name) >= 0:
                raise LlmError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.max_cost is not None and self.input_price == 0 and self.output_price == 0:
            raise LlmError("max_cost needs input_price or output_price, or nothing is counted")

    @classmethod
    def from_environment(cls, **overrides: Any) -> "LlmConfig":
        """Read base URL, key and model from the environment where `overrides` has None.

        Args:
            overrides: Fields of this class; a None for base_url, api_key or model is filled in.

        Raises:
            LlmError: No model is named, or a field is out of range.
        """
        for field, variable in (
            ("model", "TASK_LLM_MODEL"),
            ("base_url", "OPENAI_BASE_URL"),
            ("api_key", "OPENAI_API_KEY"),
        ):
            if overrides.get(field) is None:
                overrides[field] = os.environ.get(variable) or ("" if field == "model" else None)
        return cls(**overrides)


@dataclass
class LlmUsage:
    """Requests, tokens and cost so far."""

    num_requests: int = 0
    """Requests sent, retries included."""
    num_retries: int = 0
    """Requests sent again after a failure."""
    num_unanswered: int = 0
    """Answers given up after all attempts."""
    prompt_tokens: int = 0
    """Tokens read, as the endpoint reports them."""
    completion_tokens: int = 0
    """Tokens written, as the endpoint reports them."""
    cost: float = 0.0
    """US dollars at the prices of the config."""

    def __str__(self) -> str:
        """Return the figures in one line."""
        return (
            f"{self.num_requests} requests ({self.num_retries} retries, {self.num_unanswered} "
            f"unanswered), {self.prompt_tokens} + {self.completion_tokens} tokens, "
            f"{self.cost:.4f} US dollars"
        )


class RateLimiter:
    """Space requests evenly over all threads."""

    def __init__(
        self,
        requests_per_minute: float,
        clock: Callable[[], float] = time.monotonic,
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
    """Ask one endpoint within bounds; safe to share between threads.

    Args:
        sleep: Replaced in tests to see the waits.

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
            base_url=config.base_url,
            api_key=config.api_key or "none",
            timeout=config.timeout_s,
            max_retries=0,
        )
        self._limiter = RateLimiter(config.requests_per_minute, sleep=sleep)
        self._sleep = sleep
        self._jitter = random.Random(0)
        self._lock = threading.Lock()

    def ask(self, messages: list[dict[str, str]], model: str | None = None) -> str:
        """Return the text of the model's answer.

        Args:
            messages: Chat messages, {"role", "content"} each.
            model: Another model at the same endpoint; None means the config's.

        Raises:
            LlmUnavailable: No usable answer in `max_attempts` requests, or this request is refused.
            BudgetSpent: The cost has reached `max_cost`.
            LlmError: The endpoint refuses key or model name, so that every request would fail.
        """
        message = self._answer({"model": model or self.config.model, "messages": messages}, words=True)
        return message["content"]

    def converse(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], **fields: Any
    ) -> dict[str, Any]:
        """Return the model's next message in a conversation with tools.

        Args:
            messages: OpenAI-style messages, calls and tool results among them.
            tools: OpenAI-style schemas.
            fields: Further fields of the request, such as `seed`.

        Returns:
            `content` and `tool_calls` as the endpoint sent them, be they empty, and
            `num_prompt_tokens` and `num_tokens` (read and written) where it counted them.

        Raises:
            LlmUnavailable, BudgetSpent, LlmError: As `ask`.
        """
        request = {"model": self.config.model, "messages": messages, "tools": tools, **fields}
        return self._answer(request, words=False)

    def _answer(self, request: dict[str, Any], words: bool) -> dict[str, Any]:
        """Ask until the endpoint sends a message, and one with words where these are needed."""
        # No token limit is sent: providers disagree on the field's name and refuse the other one.
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
        """Return an answer's text without the key, and why it cannot be used."""
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
        """Return an endpoint's words as one bounded line without the key, should it repeat it."""
        text = " ".join(str(error).split())
        return text.replace(self.config.api_key or "\0", "(key)")[:MAX_ERROR_CHARACTERS]

    def _read(self, body: str) -> tuple[dict[str, Any], str, None]:
        """Count the tokens of an answer and return its message; a body of another form is a failure."""
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
        """Add what an answer cost; return its tokens, read and written, None when not known."""
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
        """Return the server's Retry-After, else exponential backoff with jitter; never above max_wait_s."""
        if retry_after_s is None:
            with self._lock:
                retry_after_s = BACKOFF_BASE_S * 2**attempt * self._jitter.uniform(0.75, 1.25)
        return min(retry_after_s, self.config.max_wait_s)


def _seconds(header: str | None) -> float | None:
    """Read a Retry-After header given in seconds; its date form is ignored (backoff then)."""
    try:
        seconds = float(header) if header is not None else None
    except ValueError:
        return None
    return seconds if seconds is not None and 0 <= seconds < float("inf") else None
