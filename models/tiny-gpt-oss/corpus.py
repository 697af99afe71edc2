"""Endless synthetic pre-training examples: customer text in harmony format, answered by JSON.

The store, the wording and the calling conventions differ on purpose from those of the shipped
tasks: conventions vary from example to example; none authenticates first and then writes at once.
Left out: executing the calls (they need not be accepted) and files (examples are made on the fly).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from corpus_records import WORDS, Record, digits, pseudo_word, spin
from corpus_wishes import WISH_WEIGHTS, Wish, WishMaker, call

SYSTEM = (
    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
    "Knowledge cutoff: 2024-06\nCurrent date: {date}\n\nReasoning: {effort}\n\n# Valid channels: "
    "analysis, commentary, final. Channel must be included for every message.<|end|>"
)
STYLE_WEIGHTS = {"plain": 30, "lookup": 20, "checked": 28, "closing": 14, "thinking": 8}
UNLABELLED_WEIGHTS = {"plain": 15, "lookup": 13, "checked": 55, "closing": 11, "thinking": 6}


class Corpus(WishMaker):
    """A seeded stream of (prompt, completion) texts; takes the arguments of RecordMaker."""

    def _noise(self, text: str) -> str:
        """Make typing errors in the prose of a text, never inside `<slots>`."""
        rng = self.rng
        mode = rng.random()
        rate = 0.0 if mode < 0.55 else rng.choice((0.01, 0.03, 0.06))
        drop = 0.0 if mode < 0.75 else rng.choice((0.05, 0.15))
        swap = 0.0 if mode < 0.85 else rng.choice((0.05, 0.12))
        lower = rng.random() < 0.15
        out = []
        for part in re.split(r"(<[^>\n]+>)", text):
            if part.startswith("<") and part.endswith(">"):
                out.append(part)
                continue
            part = part.lower() if lower else part
            pieces = re.split(r"(\s+)", part)
            for i in range(0, len(pieces), 2):
                word = pieces[i]
                if len(word) > 2 and word.isalpha():
                    if rng.random() < drop * 0.5:
                        word = ""
                    elif rng.random() < swap:
                        word = (
                            rng.choice(WORDS["common"]) if rng.random() < 0.7 else pseudo_word(rng)
                        )
                    elif rng.random() < rate * len(word):
                        k = rng.randrange(len(word) - 1)
                        word = rng.choice(
                            [
                                word[:k] + word[k + 1 :],
                                word[:k] + word[k + 1] + word[k] + word[k + 2 :],
                                word[:k] + word[k] + word[k:],
                            ]
                        )
                pieces[i] = word
            out.append("".join(pieces))
        return "".join(out)

    def _filler(self, record: Record) -> str:
        rng = self.rng
        text = spin(rng, rng.choice(WORDS["fillers"]))
        known = {
            "o": f"#W{digits(rng, 7)}",
            "n": digits(rng, rng.choice((5, 6, 8, 10))),
            "p": f"paypal_{digits(rng, 7)}",
        }
        stocks = {"G": WORDS["goods"], "c": WORDS["common"]}
        return re.sub(
            r"<(\w)>",
            lambda m: (
                known.get(m[1])
                or (rng.choice(stocks[m[1]]) if m[1] in stocks else pseudo_word(rng))
            ),
            text,
        )

    def _service(self) -> tuple[str, str, str]:
        """Return (developer line, customer text, completion) of a customer-service example."""
        rng = self.rng
        record = self._record()
        named = rng.random() < 0.65
        weights = STYLE_WEIGHTS if named else UNLABELLED_WEIGHTS
        style = rng.choices(list(weights), list(weights.values()))[0]
        developer = rng.choice(WORDS["styles"][style] if named else WORDS["unlabelled"])
        kinds = rng.choices(
            list(WISH_WEIGHTS),
            list(WISH_WEIGHTS.values()),
            k=rng.choice((1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4)),
        )
        wishes = [self._wish(kind, record) for kind in kinds]
        by_name = rng.random() < 0.5
        both = rng.random() < 0.12
        who_line = rng.choice(WORDS["name_lines"] if by_name else WORDS["email_lines"])
        if both:
            other = rng.choice(WORDS["email_lines"] if by_name else WORDS["name_lines"])
            who_line += rng.choice([", ", ". ", "; "]) + other
        values = {"F": record.first, "L": record.last, "Z": record.zip, "E": record.email}
        sentences: list[str] = []
        for number, wish in enumerate(wishes):
            say = re.sub(r"<([A-Z])>", lambda m, n=number: f"<{n}{m[1]}>", wish.text)
            values |= {f"{number}{key}": value for key, value in wish.slots.items()}
            if (
                number
                and wish.orders
                and wish.orders == wishes[number - 1].orders
                and rng.random() < 0.4
            ):
                values[f"{number}O"] = rng.choice(
                    ["that same order", "the same order", "it", "this order too"]
                )
            if number:
                say = (
                    rng.choice(
                        [
                            "",
                            "",
                            "",
                            "and ",
                            "then ",
                            "also ",
                            "next, ",
                            "second: ",
                            "after that ",
                            "moreover ",
                            "finally ",
                        ]
                    )
                    + say
                )
            sentences.append(say)
        if len(sentences) > 1 and rng.random() < 0.2:
            marks = rng.choice(
                [["- "] * 4, ["1. ", "2. ", "3. ", "4. "], ["a) ", "b) ", "c) ", "d) "], ["* "] * 4]
            )
            sentences = ["\n" + mark + say for mark, say in zip(marks, sentences)]
        plain_who = style in ("plain", "lookup", "thinking") and rng.random() < 0.25
        if not plain_who:
            place = rng.random()
            sentences.insert(
                0
                if place < 0.6
                else len(sentences)
                if place < 0.9
                else rng.randrange(len(sentences) + 1),
                spin(rng, who_line),
            )
        for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
            sentences.insert(rng.randrange(len(sentences) + 1), self._filler(record))
        if rng.random() < 0.65:
            sentences.insert(0, spin(rng, rng.choice(WORDS["greetings"])))
        if rng.random() < 0.4:
            sentences.append(spin(rng, rng.choice(WORDS["closings"])))
        stop = rng.choice([". ", ". ", ". ", " ", "\n", "; ", "! ", ".\n", ", ", " ... ", "\n\n"])
        text = ""
        for say in sentences:
            if rng.random() < 0.6 and say[:1].isalpha():
                say = say[0].upper() + say[1:]
            text += say + (" " if say[-1:] in ".!?,:\n" else stop)
        text = re.sub(r"<(\d?[A-Z])>", lambda m: values[m[1]], self._noise(text)).strip()
        return developer, text, self._completion(style, wishes, record, by_name or both)

    def _completion(self, style: str, wishes: list[Wish], record: Record, by_name: bool) -> str:
        who = (
            call(
                "find_user_id_by_name_zip",
                first_name=record.first,
                last_name=record.last,
                zip=record.zip,
            )
            if by_name
            else call("find_user_id_by_email", email=record.email)
        )
        calls: list[dict[str, Any]] = []
        if style == "thinking":
            calls.append(call("think", thought=f"{len(wishes)} to do"))
        if style == "checked":
            calls.append(who)
        seen: set[str] = set()
        for wish in wishes:
            is_write = not wish.calls[0]["name"].startswith(("get", "list", "calc", "trans"))
            if style in ("lookup", "checked") and is_write:
                for order_id in wish.orders:
                    if order_id not in seen:
                        calls.append(call("get_order_details", order_id=order_id))
                    seen.add(order_id)
            calls += wish.calls
        if style == "closing":
            calls.append(who)
        return json.dumps({"tool_calls": calls}, separators=(",", ":"), ensure_ascii=False)

    def _extraction(self) -> tuple[str, str, str]:
        """Return an example that fills a made-up form from a note: copying into slots."""
        rng = self.rng
        record = self._record()
        address = record.addresses[0]
        pool = [
            record.email,
            record.user_id,
            *record.orders,
            *record.payments,
            *[i for _, i in record.items],
            address["address1"],
            address["city"],
            address["zip"],
            f"{record.first} {record.last}",
            record.first,
            pseudo_word(rng),
            digits(rng, rng.randrange(1, 9)),
            pseudo_word(rng).capitalize(),
            f"{pseudo_word(rng)}-{digits(rng, 3)}",
            pseudo_word(rng).upper(),
            address["address2"] or "none",
        ]
        keys = list(
            dict.fromkeys(
                pseudo_word(rng)
                if rng.random() < 0.4
                else rng.choice(WORDS["goods"] + WORDS["streets"]).lower()
                for _ in range(rng.randrange(1, 7))
            )
        )
        values: dict[str, Any] = {}
        for key in keys:
            many = rng.random() < 0.15
            values[key] = (
                [rng.choice(pool) for _ in range(rng.randrange(1, 4))] if many else rng.choice(pool)
            )
        said = [
            spin(rng, rng.choice(WORDS["extraction_forms"]))
            .replace("#", k)
            .replace("@", self._join(v) if isinstance(v, list) else v)
            for k, v in values.items()
        ]
        rng.shuffle(said)
        for _ in range(rng.choice((0, 1, 2))):
            said.insert(rng.randrange(len(said) + 1), self._filler(record))
        wanted = rng.sample(keys, rng.randrange(1, len(keys) + 1))
        developer = rng.choice(
            ["Fill the form: ", "Extract: ", "JSON with keys ", "Give me "]
        ) + ", ".join(wanted)
        answer = json.dumps(
            {k: values[k] for k in wanted}, separators=(",", ":"), ensure_ascii=False
        )
        return developer, rng.choice([". ", ", ", "\n", "; "]).join(said), answer

    def _repeat(self) -> tuple[str, str, str]:
        """Return an example that repeats strings, or lists the ids of one kind in a text."""
        rng = self.rng
        record = self._record()
        said = rng.sample(
            [
                *record.orders[:4],
                *record.payments[:3],
                record.email,
                record.user_id,
                *[i for _, i in record.items[:4]],
                pseudo_word(rng),
            ],
            rng.randrange(1, 6),
        )
        if rng.random() < 0.5:
            return (
                rng.choice(["Repeat.", "Copy the list.", "Say it again as JSON."]),
                rng.choice([", ", "\n", " "]).join(said),
                json.dumps(said, separators=(",", ":")),
            )
        text = " ".join(f"{self._filler(record)} {value}." for value in said)
        ids = re.findall(r"#W\d+", text)
        return "List the order numbers.", text, json.dumps(ids, separators=(",", ":"))

    def _sentence(self) -> tuple[str, str, str]:
        """Return a plain exchange of sentences without JSON."""
        rng = self.rng
        record = self._record()
        reply = [self._filler(record) for _ in range(rng.choice((1, 1, 2)))] + [
            spin(rng, rng.choice(WORDS["closings"]))
        ]
        text = " ".join(
            [
                spin(rng, rng.choice(WORDS["greetings"])),
                *[self._filler(record) for _ in range(rng.randrange(1, 4))],
            ]
        )
        return "Answer in plain sentences.", text, " ".join(reply)

    def example(self) -> tuple[str, str]:
        """Return the next (prompt, completion) in harmony text."""
        rng = self.rng
        make = rng.choices(
            (self._service, self._extraction, self._repeat, self._sentence), (78, 15, 5, 2)
        )[0]
        developer, text, answer = make()
        date = (
            "2025-06-28"
            if rng.random() < 0.7
            else f"202{rng.randrange(4, 7)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}"
        )
        prompt = SYSTEM.format(
            date=date, effort=rng.choice(["low", "low", "low", "medium", "high"])
        )
        prompt += f"<|start|>developer<|message|># Instructions\n\n{developer}\n\n<|end|>"
        prompt += f"<|start|>user<|message|>{text}<|end|><|start|>assistant"
        return prompt, f"<|channel|>final<|message|>{answer}<|return|>"

    def segments(self) -> list[tuple[str, bool]]:
        """Return the next example as pieces of text, and whether they are trained."""
        prompt, completion = self.example()
        return [(prompt, False), (completion, True)]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        while True:
            yield self.example()
