"""Talk to a trained model: its words as they come, its calls, and what the store answers.

Each message is one plan on a fresh store, as in training, so nothing a chat does outlives it. Left
out: turns that remember each other (agent mode) and a server; vLLM serves the merged model.
"""

import sys
from collections.abc import Iterable
from typing import TextIO

import torch

import configs
from common.user_error import printable
from data_reader import Task, plan_prompt
from envs.retail import RetailDatabase
from gptoss.load import load_for_evaluation, memory_guard
from gptoss.memory import LARGER_GPU
from gptoss.model_types import Model, Tokenizer
from prompting.plan_format import plan_format
from scoring.explain import explain_calls

EXAMPLE_QUERY = "Hi, I need to cancel my order {order_id}, I no longer need it. My email is {email}."


def example_query(db: RetailDatabase) -> str:
    """Return a cancellation that the store accepts: its first pending order, by its customer."""
    order = next(order for order in db.orders.values() if order["status"] == "pending")
    email = db.users[order["user_id"]]["email"]
    return EXAMPLE_QUERY.format(order_id=order["order_id"], email=email)


def encode_query(tokenizer: Tokenizer, query: str, config: configs.RunConfig) -> torch.Tensor:
    """Return the prompt of a query as token ids, shape `[1, T]`.

    Raises:
        ValueError: The query holds a control token of harmony, is no valid text, or
            leaves no room for the answer.
    """
    try:
        query.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("the line is not valid UTF-8 text") from error
    task = Task(query=query, gold_actions=[], gold_final="", task_id="chat")
    prompt = plan_prompt(task, config.data.prompt_style, plan_format(tokenizer))
    # Its own warning of long texts speaks of the tokenizer; the limit here is the training's.
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt", verbose=False)["input_ids"]
    room = config.model.max_seq_length - config.evaluation.max_new_tokens
    if ids.shape[1] > room:
        raise ValueError(
            f"{ids.shape[1]} tokens with the store's policy, {room} fit beside an answer "
            "(model.max_seq_length - evaluation.max_new_tokens); write a shorter message"
        )
    return ids


@torch.no_grad()
def stream_answer(
    model: Model, tokenizer: Tokenizer, ids: torch.Tensor, config: configs.RunConfig, stream: TextIO
) -> str:
    """Answer a prompt of `encode_query` greedily, writing the completion as it is decoded.

    Returns:
        The final message's text; empty when there is none.
    """
    from transformers import TextStreamer

    class Words(TextStreamer):
        """Passes text on to the given stream instead of standard output."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            # A terminal would obey control characters.
            shown = "\n".join(map(printable, text.split("\n")))
            stream.write(shown + ("\n" if stream_end else ""))
            stream.flush()

    ids = ids.to(model.device)
    was_training = model.training
    model.eval()
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
        max_new_tokens=config.evaluation.max_new_tokens, streamer=Words(tokenizer, skip_prompt=True),
    )
    model.train(was_training)
    text = tokenizer.decode(output[0, ids.shape[1]:], skip_special_tokens=False)
    return plan_format(tokenizer).final_text(text)


def quick_test(
    model: Model, tokenizer: Tokenizer, db: RetailDatabase, config: configs.RunConfig, query: str = ""
) -> None:
    """Print a query, the model's answer, and what its calls do on the store.

    Args:
        query: What the customer writes; empty takes a cancellation that the store accepts.

    Raises:
        ModelError: The GPU's memory is too small for the answer.
        ValueError: The query cannot be sent, see `encode_query`.
    """
    query = query or example_query(db)
    ids = encode_query(tokenizer, query, config)
    print(f"customer: {query}\nmodel:    ", end="", flush=True)
    with memory_guard("answering", LARGER_GPU):
        final = stream_answer(model, tokenizer, ids, config, sys.stdout)
    print(explain_calls(final, db))


def run_chat(model_dir: str, lines: Iterable[str] | None = None) -> int:
    """Answer each line of the input, standard input when it is None, until it ends.

    Raises:
        ModelError: The model cannot be loaded.
        DatabaseError: The store cannot be read.
    """
    config = configs.config_of_model(model_dir)
    db = RetailDatabase.load(config.data.data_dir or None)
    model, tokenizer = load_for_evaluation(model_dir, config.model.without_vllm())
    print(f"One request a line, for example: {example_query(db)}\nEnd with Ctrl-D.")
    for line in sys.stdin if lines is None else lines:
        if line.strip():
            try:
                quick_test(model, tokenizer, db, config, line.strip())
            except ValueError as error:
                print(f"not sent: {error}")
    return 0
