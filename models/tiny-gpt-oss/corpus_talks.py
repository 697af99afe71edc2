"""Made-up conversations of the pre-training corpus: a customer, an agent with tools, their results.

Words, shops and manners are its own and vary from talk to talk: some agents look up first, some ask
before a change, some do neither. Left out: the rules of the shipped shop, which SFT teaches, and
executing the calls: a result is made from the record that the talk is about.
"""

from __future__ import annotations

import json
import random
from typing import Any

from corpus import Corpus
from corpus_records import ADDRESS_FIELDS, WORDS, Record, RecordMaker, digits, pseudo_word, spin

from prompting.dialogue import render_answers, render_call
from prompting.harmony import CHANNEL, END, MESSAGE, RETURN, START

Segments = list[tuple[str, bool]]
"""Pieces of an example's text, and whether their tokens are trained."""

SYSTEM = (
    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
    "Knowledge cutoff: 2024-06\nCurrent date: 2025-06-28\n\nReasoning: low\n\n# Valid channels: "
    "analysis, commentary, final. Channel must be included for every message.<|end|>"
    "<|start|>developer<|message|># Instructions\n\n{}\n\n<|end|>"
)
OPTION_NAMES = ("color", "size", "material", "style", "finish", "length", "capacity", "pack", "weight")
BRANDS = ("visa", "mastercard", "amex", "discover")
DEVELOPER = (
    "Serve the customer with the tools.", "Chat with the shop's customer.", "You answer in a chat.",
    "Help by chat; you have tools.", "Shop support, live chat.", "Talk, and call tools.",
)
ASKS_WHO = (
    "{Sure|Of course|Gladly|Hello}{.|!|,} {who are you|what is your email|may I have your email or your "
    "name and zip}?", "{Please|} {tell me|give me} your {email|name and zip code}{ first|}.",
)
ASKS_WHAT = (
    "{What|How} can I {do|help}{ for you|}?", "{Found you|Thanks|Got it}{.|,} {what do you need|which order "
    "is it and what shall happen}?",
)
ASKS_YES = (
    "{Shall|Should} I {do that|go on}?", "Is that {right|what you want}?", "{OK|Yes or no}?",
    "Do you {agree|confirm}?",
)
YES = ("{Yes|Yep|Yeah|Sure}{.|!|, please.|, do it.}", "{Go ahead|Do it|Correct|That is right}.")
REPORTS = ("{Done|It is done|All set}: {} is {}.", "{} {has been|was} {}.", "I have {} {}.")
MORE = ("{Anything|Something} else?", "{What else can I do|Can I do more}?", "", "")
BYE = ("{No, thanks|That is all|Nothing else}{.|!} {Bye|Thank you|Cheers}{.|!}",)
ANSWERS = ("{It is|I see|The record says|That would be} {}.", "{Here it is:|I found} {}.", "{}.")
PLANS = {
    "cancel_pending_order": ("call off", "cancelled"),
    "return_delivered_order_items": ("take back", "registered as a return"),
    "exchange_delivered_order_items": ("swap", "noted as an exchange"),
    "modify_pending_order_items": ("change", "changed"),
    "modify_pending_order_address": ("redirect", "redirected"),
    "modify_pending_order_payment": ("rebill", "billed anew"),
    "modify_user_address": ("move", "moved"),
}


class TalkMaker(RecordMaker):
    """Makes conversations; takes the arguments of RecordMaker."""

    # -- a shop for one talk -----------------------------------------------------------------------

    def _product(self) -> dict[str, Any]:
        rng = self.rng
        if self.products and rng.random() < 0.5:
            model = rng.choice(list(self.products.values()))
            name = model["name"]
            kinds = [v["options"] for v in model["variants"].values()]
            rng.shuffle(kinds)
        else:
            name = self._item_name()
            names = rng.sample(OPTION_NAMES, rng.choice((1, 2, 2, 3)))
            values = {n: self._values() for n in names}
            kinds = [{n: rng.choice(values[n]) for n in names} for _ in range(9)]
        seen = {json.dumps(options): options for options in kinds[: rng.randrange(2, 10)]}
        variants = {}
        for options in seen.values():
            item_id = digits(rng, 10)
            variants[item_id] = {
                "item_id": item_id, "options": options, "available": rng.random() < 0.7,
                "price": round(rng.uniform(3, 600), 2),
            }
        return {"name": name, "product_id": digits(rng, 10), "variants": variants}

    def _values(self) -> list[str]:
        rng = self.rng
        return [
            rng.choice(WORDS["options"]) if rng.random() < 0.7 else pseudo_word(rng)
            for _ in range(4)
        ]

    def _shop(self, record: Record) -> dict[str, Any]:
        """Return the customer's record, products, and orders by id."""
        rng = self.rng
        products = [self._product() for _ in range(rng.choice((1, 2, 3, 4)))]
        methods = {}
        kinds = ("credit_card", "credit_card", "paypal", "gift_card")
        for kind in rng.sample(kinds, rng.choice((1, 2, 3))):
            method: dict[str, Any] = {"source": kind}
            if kind == "credit_card":
                method |= {"brand": rng.choice(BRANDS), "last_four": digits(rng, 4)}
            if kind == "gift_card":
                method["balance"] = rng.randrange(5, 200)
            methods[f"{kind}_{digits(rng, 7)}"] = method
        orders = {}
        for order_id in list(dict.fromkeys(record.orders))[: rng.choice((1, 2, 3))]:
            items = []
            for product in rng.sample(products, rng.randrange(1, len(products) + 1)):
                variant = rng.choice(list(product["variants"].values()))
                items.append({
                    "name": product["name"], "product_id": product["product_id"],
                    "item_id": variant["item_id"], "price": variant["price"],
                    "options": variant["options"],
                })
            orders[order_id] = {
                "status": rng.choice(("pending", "delivered", "processed", "cancelled")),
                "user_id": record.user_id, "address": record.addresses[0], "items": items,
                "payment_history": [{"payment_method_id": rng.choice(list(methods))}],
            }
        user = {
            "name": {"first_name": record.first, "last_name": record.last}, "email": record.email,
            "address": record.addresses[0], "payment_methods": methods, "orders": list(orders),
        }
        return {"user": user, "orders": orders, "products": {p["product_id"]: p for p in products}}

    # -- the talk ----------------------------------------------------------------------------------

    def _user(self, text: str) -> None:
        self._say(f"{START}user{MESSAGE}{text}{END}", False)

    def _say(self, text: str, trained: bool) -> None:
        self.segments.append((text, trained))

    def _agent(self, text: str) -> None:
        self._say(f"{START}assistant", False)
        self._say(f"{CHANNEL}final{MESSAGE}{text}", True)
        self._say(END, False)

    def _call(self, name: str, result: Any, **arguments: Any) -> None:
        """Make a call and show its result: text, or a record as the tools return it."""
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        self._say(f"{START}assistant", False)
        self._say(render_call(name, json.dumps(arguments, ensure_ascii=False)), True)
        reply = {"tool_calls": [{"function": {"name": name}}]}
        self._say(render_answers(reply, [{"role": "tool", "content": text}], "brief"), False)

    def _filled(self, forms: tuple[str, ...], *values: str) -> str:
        text = spin(self.rng, self.rng.choice(forms).replace("{}", "\0"))
        for value in values:
            text = text.replace("\0", value, 1)
        return text.replace("\0", "")

    def talk(self) -> Segments:
        """Return the next conversation, from the first words of the customer to a turn of the agent."""
        rng, record = self.rng, self._record()
        shop = self._shop(record)
        self.segments: Segments = [(SYSTEM.format(rng.choice(DEVELOPER)), False)]
        by_name, named = rng.random() < 0.45, rng.random() < 0.65
        who = (
            spin(rng, rng.choice(WORDS["name_lines"]))
            .replace("<F>", record.first).replace("<L>", record.last).replace("<Z>", record.zip)
            if by_name else
            spin(rng, rng.choice(WORDS["email_lines"])).replace("<E>", record.email)
        )
        wishes = [self._wish_of(record, shop) for _ in range(rng.choice((1, 1, 1, 2)))]
        greeting = spin(rng, rng.choice(WORDS["greetings"]))
        told = rng.random() < 0.7
        opening = [greeting, who + "." if named else "", wishes[0][0] if told or not named else ""]
        self._user(" ".join(filter(None, opening)))
        if rng.random() < 0.93:
            if not named:
                self._agent(self._filled(ASKS_WHO))
                self._user(who)
            if by_name:
                self._call("find_user_id_by_name_zip", record.user_id, first_name=record.first,
                           last_name=record.last, zip=record.zip)
            else:
                self._call("find_user_id_by_email", record.user_id, email=record.email)
        if rng.random() < 0.5 or any(needs for _, needs, _ in wishes):
            self._call("get_user_details", shop["user"], user_id=record.user_id)
        looks_up, asks = rng.random() < 0.85, rng.random() < 0.75
        for number, (text, _, serve) in enumerate(wishes):
            if named and not told and not number:
                self._agent(self._filled(ASKS_WHAT))
            if number or named and not told:
                self._user(text)
            serve(looks_up, asks)
        if rng.random() < 0.3:
            self._user(self._filled(BYE))
            self._agent(self._filled(("{Bye|Goodbye|You are welcome}{.|!}",)))
        text, trained = self.segments.pop()
        if (text, trained) == (END, False):
            self._say(RETURN, True)
        return self.segments

    def _wish_of(self, record: Record, shop: dict[str, Any]) -> tuple[str, bool, Any]:
        """Return words, whether a payment method must be looked up, and what serves the wish."""
        rng = self.rng
        order_id = rng.choice(list(shop["orders"]))
        order = shop["orders"][order_id]
        kind = rng.choices(
            ("cancel", "return", "swap", "redirect", "rebill", "move", "ask", "product", "sum", "human"),
            (12, 14, 16, 10, 9, 6, 12, 8, 6, 4),
        )[0]
        methods = shop["user"]["payment_methods"]
        method_id = rng.choice(list(methods))
        method = self._method_words(methods[method_id])
        said = self._say_order(order_id)

        def write(name: str, arguments: dict[str, Any], what: str, reads: list[Any]) -> Any:
            return lambda looks_up, asks: self._serve(name, arguments, what, reads, looks_up, asks)

        look = ("get_order_details", order, {"order_id": order_id})
        if kind == "cancel":
            by_mistake = rng.random() < 0.5
            why = spin(rng, rng.choice(WORDS["mistaken" if by_mistake else "no_longer"]))
            reason = "ordered by mistake" if by_mistake else "no longer needed"
            arguments = {"order_id": order_id, "reason": reason}
            text = f"{self._want()} {spin(rng, '{cancel|call off|drop}')} {said}, {why}."
            return text, False, write("cancel_pending_order", arguments, f"{order_id}, {reason}", [look])
        if kind in ("redirect", "move"):
            address = record.addresses[-1]
            goal = said if kind == "redirect" else spin(rng, "{my account|my profile|me}")
            verb = spin(rng, "{send|ship|move|redirect}")
            text = f"{self._want()} {verb} {goal} to {self._say_address(address)}."
            fields = {name: address[name] for name in ADDRESS_FIELDS}
            if kind == "move":
                arguments = {"user_id": record.user_id, **fields}
                return text, False, write("modify_user_address", arguments, address["address1"], [])
            arguments = {"order_id": order_id, **fields}
            what = f"{order_id} to {address['address1']}"
            return text, False, write("modify_pending_order_address", arguments, what, [look])
        if kind == "rebill":
            verb, link = spin(rng, "{pay|charge|bill}"), spin(rng, "{with|to|by}")
            text = f"{self._want()} {verb} {said} {link} {method}."
            arguments = {"order_id": order_id, "payment_method_id": method_id}
            what = f"{order_id}, {method}"
            return text, True, write("modify_pending_order_payment", arguments, what, [look])
        if kind in ("return", "swap"):
            return self._items_wish(kind, order_id, order, shop, method_id, method, said, look)
        if kind == "ask":
            item = rng.choice(order["items"])
            answer, question = rng.choice((
                (order["status"], f"what is the state of {said}"),
                (str(item["price"]), f"what did the {item['name']} in {said} cost"),
                (order["address"]["address1"], f"where does {said} go"),
                (str(len(order["items"])), f"how many things are in {said}"),
            ))
            return self._question(question, [look], answer)
        if kind == "product":
            product = rng.choice(list(shop["products"].values()))
            variant = rng.choice(list(product["variants"].values()))
            words = self._options(variant["options"])
            look = ("get_product_details", product, {"product_id": product["product_id"]})
            named = f"the {product['name']} (product {product['product_id']})"
            stocked = "in stock" if variant["available"] else "out of stock"
            answer, question = rng.choice((
                (str(variant["price"]), f"what is the price of {named} with {words}"),
                (stocked, f"is there {named} with {words}"),
                (str(len(product["variants"])), f"how many kinds of {named} are there"),
            ))
            return self._question(question, [look], answer)
        if kind == "sum":
            terms = [f"{rng.uniform(2, 500):.2f}" for _ in range(rng.choice((2, 2, 3)))]
            total = f"{sum(map(float, terms)):.2f}"
            look = ("calculate", total, {"expression": " + ".join(terms)})
            return self._question(f"what is {' plus '.join(terms)}", [look], total)
        subject = rng.choice(WORDS["subjects"])

        def hand_over(looks_up: bool, asks: bool) -> None:
            self._call("transfer_to_human_agents", "Transfer successful", summary=subject)
            self._agent(self._filled(("{A colleague|Somebody} {takes over|is coming}.",)))

        verb = spin(rng, "{talk about|speak to a person about|report}")
        return f"{self._want()} {verb} a {subject}.", False, hand_over

    def _items_wish(
        self, kind: str, order_id: str, order: dict[str, Any], shop: dict[str, Any], method_id: str,
        method: str, said: str, look: tuple,
    ) -> tuple[str, bool, Any]:
        rng = self.rng
        items = rng.sample(order["items"], min(len(order["items"]), rng.choice((1, 1, 1, 2))))
        reads, names, new_ids = [look], [], []
        for item in items:
            name = f"the {item['name']}"
            if rng.random() < 0.7:
                name += f" ({self._options(item['options'])})"
            if kind == "swap":
                product = shop["products"][item["product_id"]]
                new = rng.choice(list(product["variants"].values()))
                new_ids.append(new["item_id"])
                reads.append(("get_product_details", product, {"product_id": item["product_id"]}))
                changed = {k: v for k, v in new["options"].items() if v != item["options"].get(k)}
                name += f" for one with {self._options(changed or new['options'])}"
            names.append(name)
        listed = " and ".join(names)
        link = "refund to" if kind == "return" else "difference on"
        arguments: dict[str, Any] = {"order_id": order_id, "item_ids": [i["item_id"] for i in items]}
        tool = "return_delivered_order_items"
        verb = "{return|send back|bring back}"
        if kind == "swap":
            arguments["new_item_ids"] = new_ids
            tool, verb = rng.choice((
                ("exchange_delivered_order_items", "{exchange|swap}"),
                ("modify_pending_order_items", "{change|alter}"),
            ))
        arguments["payment_method_id"] = method_id
        place = spin(rng, "{from|of|in}")
        text = f"{self._want()} {spin(rng, verb)} {listed} {place} {said}, {link} {method}."

        def serve(looks_up: bool, asks: bool) -> None:
            self._serve(tool, arguments, f"{order_id}, {listed}, {method}", reads, True, asks)

        return text, True, serve

    def _question(self, question: str, reads: list[tuple], answer: str) -> tuple[str, bool, Any]:
        def serve(looks_up: bool, asks: bool) -> None:
            for name, result, arguments in reads:
                self._call(name, result, **arguments)
            self._agent(f"{self._filled(ANSWERS, answer)} {self._filled(MORE)}".strip())

        return f"{question[0].upper()}{question[1:]}?", False, serve

    def _serve(
        self, name: str, arguments: dict[str, Any], what: str, reads: list[tuple], looks_up: bool,
        asks: bool,
    ) -> None:
        plan, done = PLANS[name]
        for read, result, given in reads if looks_up else ():
            self._call(read, result, **given)
        if asks:
            self._agent(f"I {spin(self.rng, '{will|would|can}')} {plan} {what}. {self._filled(ASKS_YES)}")
            self._user(self._filled(YES))
        self._call(name, {"status": done}, **arguments)
        about = arguments.get("order_id", "the account")
        self._agent(f"{self._filled(REPORTS, about, done)} {self._filled(MORE)}".strip())

    def _want(self) -> str:
        return spin(self.rng, "{I want to|Please|I would like to|I need to|Could you}")

    @staticmethod
    def _options(options: dict[str, Any]) -> str:
        return ", ".join(f"{name} {value}" for name, value in options.items())

    def _method_words(self, method: dict[str, Any]) -> str:
        rng = self.rng
        if method["source"] == "credit_card":
            link = spin(rng, "{ending in |with |}")
            return f"my {method['brand']} card {link}{method['last_four']}"
        return "my " + {"paypal": "PayPal account", "gift_card": "gift card"}[method["source"]]


class MixedCorpus:
    """A seeded stream of conversations and of the corpus's one-answer examples."""

    def __init__(self, seed: int, store: tuple[dict, dict, dict], talk_share: float) -> None:
        """Begin both streams; `talk_share` of the examples are conversations."""
        self.rng = random.Random(f"{seed} talks")
        self._plans, self._talks, self._share = Corpus(seed, store), TalkMaker(seed, store), talk_share

    def segments(self) -> Segments:
        """Return the next example."""
        if self.rng.random() < self._share:
            return self._talks.talk()
        return self._plans.segments()
