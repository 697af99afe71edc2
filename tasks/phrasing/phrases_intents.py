"""Table of phrases: requests for changes, and how orders, items and money are named.

`{I}`, `{my}`, `{me}` and `{am}` follow the voice (the customer's own, or a note about the
customer). Verb phrases (`do_...`) begin with a bare verb.
"""

FRAMES: dict[str, tuple[str, ...]] = {
    "first_do": (
        "please {vp}.", "could you {vp}?", "can you {vp}?", "would you {vp}, please?", "I'd like to {vp}.",
        "I would like to {vp}.", "I want to {vp}.", "I need to {vp}.", "I need you to {vp}.",
        "would it be possible to {vp}?", "my request is to {vp}.", "I'm writing to {vp}.",
        "I'm hoping to {vp}.", "I'd be glad if you could {vp}.", "is there a way to {vp}?",
        "what I need is to {vp}.", "kindly {vp}.", "help me {vp}, please.", "I have decided to {vp}.",
        "it would be great if you could {vp}.", "I'd appreciate it if you would {vp}.",
        "may I ask you to {vp}?", "the plan is to {vp}.", "let's {vp}.", "I wish to {vp}.",
        "go ahead and {vp}, please.", "I was wondering if you could {vp}.", "do me a favor and {vp}.",
        "the thing is, I have to {vp}.", "all I want is to {vp}.", "any chance you can {vp}?",
    ),
    "third_do": (
        "customer wants to {vp}.", "caller wishes to {vp}.", "they asked us to {vp}.", "request: {vp}.",
        "wants to {vp}.", "needs to {vp}.", "caller would like to {vp}.", "to do: {vp}.",
        "they need us to {vp}.", "the customer asked to {vp}.", "hopes to {vp}.", "action needed: {vp}.",
        "reason for the call: to {vp}.", "they called to {vp}.", "we are to {vp}.", "please {vp}.",
        "the caller insists that we {vp}.", "agreed with the caller to {vp}.",
    ),
    "form_do": (
        "request: {vp}", "message: please {vp}.", "what can we do for you: {vp}", "details: {vp}",
        "subject: {vp}", "description: I'd like to {vp}.", "{vp}.", "your request: {vp}",
        "issue: I need to {vp}.", "how can we help: please {vp}.", "action: {vp}", "text: kindly {vp}.",
    ),
    "first_know": (
        "can you tell me {q}?", "could you let me know {q}?", "please tell me {q}.",
        "I'd like to know {q}.", "I was wondering {q}.", "I want to find out {q}.", "would you check {q}?",
        "do you know {q}?", "please look up {q}.", "I need to know {q}.", "could you see {q}?",
        "I keep asking myself {q}.", "my question is {q}.", "I can't work out {q}.",
        "please check {q} for me.", "I'm curious {q}.", "kindly inform me {q}.", "help me see {q}, please.",
        "I forgot {q}.", "mind telling me {q}?",
    ),
    "third_know": (
        "customer asks {q}.", "wants to know {q}.", "caller would like to know {q}.", "question: {q}.",
        "they asked {q}.", "to answer: {q}.", "inquired {q}.", "please tell them {q}.",
        "the caller is unsure {q}.", "they could not work out {q}.", "we are to look up {q}.",
    ),
    "form_know": (
        "question: {q}", "request: tell me {q}.", "message: I'd like to know {q}.",
        "details: please look up {q}.", "your question: {q}", "what can we do for you: let me know {q}.",
        "inquiry: {q}", "subject: {q}",
    ),
    "joiner": (
        "also,", "besides,", "on top of that,", "in addition,", "then,", "and another thing:", "next,",
        "after that,", "another point:", "furthermore,", "secondly,", "one more thing:",
        "while you're at it,", "apart from that,", "the other matter:", "plus,", "and then,",
        "once that's done,", "separately,", "moving on,", "not only that:", "something else:", "as well,",
    ),
    "last_joiner": (
        "finally,", "lastly,", "and to finish,", "last of all,", "one last thing:", "and finally,",
        "to round it off,", "last but not least,", "before I forget:", "the final point:",
    ),
}

ORDERS: dict[str, tuple[str, ...]] = {
    "order_np": (
        "order {order}", "{my} order {order}", "{order}", "the order {order}", "order number {order}",
        "the purchase under {order}", "order {order} with the {names}", "{order} (the {names})",
        "{my} {names} order, {order},", "what {I} bought under {order}", "the order numbered {order}",
        "the complete order {order}",
    ),
    "order_ref": (
        "order {order}", "{my} order {order}", "{order}", "order number {order}", "the order {order}",
        "the purchase {order}",
    ),
    "pending_np": (
        "{my} pending order {order}", "order {order}, which {not_shipped},", "pending order {order}",
        "order {order} (still pending)", "the pending order {order}", "{order}, which {not_shipped},",
        "{order}, still pending,", "{my} order {order} that {not_shipped}", "{order} ({not_shipped_short})",
        "the order {order}, still pending,",
    ),
    "not_shipped": (
        "has not shipped yet", "is still pending", "hasn't been sent yet", "is pending",
        "hasn't left your warehouse", "has not gone out yet", "is yet to ship",
    ),
    "not_shipped_short": ("pending", "not shipped yet", "unshipped", "not sent out yet"),
    "delivered_np": (
        "{my} delivered order {order}", "order {order}, which arrived {when},", "delivered order {order}",
        "order {order} (delivered {when})", "{order}, delivered {when},", "{order}, which {got_here},",
        "the order {order} that {got_here}", "{order} (already delivered)",
        "order {order} that {I} received {when}", "the delivery {order} from {when_noun}",
    ),
    "got_here": (
        "arrived {when}", "was delivered {when}", "reached {me} {when}", "came {when}",
        "{I} received {when}", "turned up {when}", "landed on {my} doorstep {when}",
    ),
    "when": (
        "last week", "yesterday", "on {weekday}", "this morning", "a few days ago", "last {weekday}",
        "the other day", "earlier this week", "in {month}", "over the weekend", "recently",
    ),
    "when_noun": ("last week", "yesterday", "{weekday}", "this week", "the weekend", "{month}"),
}

MONEY: dict[str, tuple[str, ...]] = {
    "method_credit_card": (
        "{my} card {pay}", "{pay}", "the credit card {pay}", "{my} credit card ({pay})", "{pay} ({label})",
        "the {label}, {pay},", "the card {pay}", "{my} card with the id {pay}",
    ),
    "method_paypal": (
        "{my} PayPal ({pay})", "{pay}", "PayPal, {pay}", "the PayPal account {pay}",
        "{my} PayPal account ({pay})", "PayPal ({pay})", "{my} {pay} account",
    ),
    "method_gift_card": (
        "{my} gift card {pay}", "{pay}", "the gift card {pay}", "{my} gift card ({pay})", "gift card {pay}",
        "the balance of {pay}", "the gift card with the id {pay}",
    ),
    "method_other": ("{pay}", "{my} account {pay}", "the method {pay}"),
    "refund": (
        ", with the refund going to {method}", " and refund {method}", ", refunded to {method}",
        "; the money should go to {method}", " and have the money put back on {method}",
        ", refund to {method}", " and get the money back on {method}", ", crediting {method}",
        "; refund it to {method}", " for a refund on {method}", " (refund: {method})",
        ". The refund belongs on {method}", ". Use {method} for the refund",
        ". As for the money, {method} is the place for it",
    ),
    "difference": (
        ", any difference settled with {method}", " and use {method} for the difference",
        ", difference on {method}", "; put the price difference on {method}",
        ", paying or refunding the difference with {method}",
        ". Use {method} for whatever the difference is", ". The difference goes on {method}",
        ", with {method} covering any difference", " (difference: {method})",
        " and settle up through {method}", ". Charge or credit {method} for the difference",
        ". If the price differs, {method} takes it", ", with the price gap on {method}", " using {method}",
    ),
    "enough": (
        ", it holds enough", ", which covers it", "; there is enough on it", " (the balance is enough)",
        ", it has plenty left", "", "", "",
    ),
    "instead": (
        " instead", "", " from now on", " rather than the present one", " instead of what is set now", "",
    ),
}

REASONS: dict[str, tuple[str, ...]] = {
    "joint": (", ", " because ", " since ", " - ", " as ", "; "),
    "why_not_needed": (
        "{I} no longer need it", "{I} don't need it any more", "{my} plans have changed",
        "{I} found one nearby", "{my} {relative} already bought {me} the same", "{I} changed {my} mind",
        "the {occasion} was called off", "it is taking too long", "{I} have no use for it now",
        "it would come too late for the {occasion}", "{I} got one as a gift",
        "the budget is tight this month", "{I} would rather wait for a sale",
        "{my} {relative} lent {me} one", "{I} saw it cheaper elsewhere",
        "{am} moving to {city} and won't need it", "there's no room for it after all",
        "{my} {relative} doesn't want it any longer", "the old one works again",
        "{I} bought it somewhere else {when}", "it isn't needed any longer", "{am} leaving for {city} soon",
        "{my} {relative} talked {me} out of it", "the project it was for fell through",
    ),
    "why_mistake": (
        "{I} ordered it by mistake", "it was placed by accident", "{I} clicked the wrong button",
        "{I} never meant to order it", "{my} {relative} ordered it by accident",
        "it was ordered by mistake", "{I} ordered it twice", "it was a mistake",
        "{I} bought it accidentally", "it went through by mistake",
        "{my} {relative} placed it accidentally", "the purchase was unintentional",
        "that one was an error on {my} part",
        "{my} {pet} stepped on the keyboard and ordered it by accident", "{I} did not mean to buy it",
        "{I} mistakenly hit the buy button", "it is a duplicate order", "placing it was {my} mistake",
        "{I} mistook it for another shop's cart", "it was a misclick", "{I} placed it inadvertently",
        "{I} ordered the wrong thing",
    ),
    "occasion": ("party", "trip", "wedding", "birthday", "picnic", "move", "reunion", "holiday", "course"),
    "why_move": (
        "{am} moving to {city_gone}", "{I} moved {when}", "{am} staying with {my} {relative}",
        "the old place is sold", "{am} away for work", "nobody is home at the old place",
        "{my} {relative} will take the parcel", "the lease ran out", "{I} started a job elsewhere",
        "parcels get stolen at the old place", "the building is being renovated",
    ),
    "city_gone": ("another town", "the coast", "a bigger place", "a new flat", "the countryside"),
    "why_return": (
        "it doesn't suit {me}", "{I} changed {my} mind", "{my} {relative} doesn't like it",
        "it's not what {I} pictured", "{I} got a better one", "it doesn't fit in the {room}",
        "it is too heavy for {me}", "the color is off", "{my} {relative} has one already",
        "{I} hardly use it", "it looked nicer in the pictures",
    ),
    "room": ("hall", "kitchen", "bedroom", "office", "garage", "attic", "living room", "guest room"),
    "why_swap": (
        "that fits {me} better", "{my} {relative} prefers it", "it goes with the {room}",
        "{I} picked in a hurry", "it would suit {me} more", "it's for {my} {relative}",
        "that's what the {occasion} calls for", "{I} read better reviews of it", "{my} needs have changed",
        "{my} {relative} has the same one",
    ),
    "why_pay": (
        "the old one expires soon", "{am} tidying up {my} accounts", "{my} {relative} uses the other one",
        "{I} want to keep them apart", "the other one is over its limit", "{I} lost the other one",
        "it's easier for {me}", "{my} bank asked {me} to", "that one earns points",
    ),
}

VERBS: dict[str, tuple[str, ...]] = {
    "do_cancel": (
        "cancel {order_np}", "have {order_np} cancelled", "call off {order_np}", "get {order_np} cancelled",
        "stop {order_np}", "cancel {order_np} altogether", "cancel the whole of {order_ref}",
        "scrap {order_np}", "drop {order_np}", "withdraw {order_np}", "void {order_np}",
        "cancel {order_np} before it ships", "put an end to {order_np}",
    ),
    "do_return": (
        "return {items} from {delivered_np}{refund}", "send back {items} from {delivered_np}{refund}",
        "return {items}, part of {order_ref}{refund}",
        "get {items} returned that came with {order_ref}{refund}",
        "return the following from {order_ref}: {items}{refund}",
        "have {items} of {delivered_np} taken back{refund}",
        "arrange a return for {delivered_np}: {items}{refund}",
        "start a return of {items} from {order_ref}{refund}", "send {items} in {order_ref} back{refund}",
        "request a return of {items} out of {delivered_np}{refund}",
        "set up a return on {order_ref} for {items}{refund}",
    ),
    "do_exchange": (
        "exchange {pairs_for} from {delivered_np}{difference}",
        "swap {pairs_for} in {delivered_np}{difference}",
        "make an exchange on {delivered_np}: {pairs_for}{difference}",
        "trade {pairs_for} from {delivered_np}{difference}",
        "exchange the following from {delivered_np}: {pairs_for}{difference}",
        "arrange an exchange for {delivered_np}, {pairs_for}{difference}",
        "have {delivered_np} partly exchanged: {pairs_for}{difference}",
        "exchange, out of {delivered_np} {pairs_for}{difference}",
    ),
    "do_change_items": (
        "change {pairs_to} in {pending_np}{difference}", "modify {pending_np}: {pairs_to}{difference}",
        "switch {pairs_to} in {pending_np}{difference}", "replace {pairs_with} in {pending_np}{difference}",
        "amend {pending_np} by changing {pairs_to}{difference}",
        "alter {pending_np}, {pairs_to}{difference}",
        "update the items of {pending_np}: {pairs_to}{difference}",
        "edit {pending_np}: {pairs_to}{difference}", "change, within {pending_np} {pairs_to}{difference}",
    ),
    "do_change_address": (
        "have {order_np} shipped to {address}", "change the delivery address of {order_np} to {address}",
        "have {order_np} sent to {address}", "redirect {order_np} to {address}",
        "update the shipping address on {order_np}: {address}",
        "get {order_np} sent to a new address: {address}", "let {order_np} go to {address}",
        "reroute {order_np} to {address}", "set the address of {order_np} to {address}",
        "change where {order_np} ships, namely to {address}",
        "fix the destination of {order_np}: {address}",
        "have {order_np} delivered to this address: {address}",
        "correct the shipping details of {order_np} to {address}",
    ),
    "do_change_profile_address": (
        "change the address on {my} account {user} to {address}",
        "update {my} default address (user id {user}) to {address}",
        "set {my} profile address, user {user}, to {address}",
        "put a new address on the account {user}: {address}",
        "change {my} home address for user id {user} to {address}", "update the profile {user}: {address}",
        "correct the address stored for {user} to {address}",
        "have the account {user} show this address: {address}",
        "move {my} user account {user} to {address}",
        "replace the address on file for {user} with {address}",
        "amend the address in {my} profile ({user}): {address}",
    ),
    "do_change_payment": (
        "pay for {order_np} with {method}{instead}",
        "switch the payment of {order_np} to {method}{instead}",
        "have {order_np} charged to {method}{instead}",
        "move the payment for {order_np} over to {method}{instead}",
        "change the payment method of {order_np} to {method}{instead}",
        "put {order_np} on {method}{instead}", "have {order_np} billed to {method}{instead}",
        "let {order_np} run on {method}{instead}", "update the payment on {order_np}: {method}{instead}",
        "set {method} as the payment for {order_np}", "use {method} to pay for {order_np}",
        "get {order_np} billed to {method}{instead}",
    ),
    "do_transfer_state": (
        "report something {subject}", "file this under {subject}",
        "talk to someone about something {subject}", "open a case: {subject}",
        "sort out something that was {subject}", "speak to a person about a parcel {subject}",
        "have a thing {subject} looked at", "pass this on under {subject}",
        "send this to a specialist, subject: {subject}", "get help with something {subject}",
        "complain about a box {subject}",
    ),
    "do_transfer": (
        "report {an} {subject}", "raise {an} {subject}", "talk to someone about {an} {subject}",
        "open a case: {subject}", "sort out {an} {subject}", "speak to a person about {an} {subject}",
        "get {an} {subject} looked at", "have {an} {subject} taken care of", "bring up {an} {subject}",
        "settle {an} {subject}", "submit something as {an} {subject}", "file {an} {subject}",
        "discuss this with a specialist, subject: {subject}", "pass this on under {subject}",
    ),
}

INTENT_PHRASES = FRAMES | ORDERS | MONEY | REASONS | VERBS
