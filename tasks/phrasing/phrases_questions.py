"""Table of phrases: questions, requests that are refused, and ids to leave alone.

Questions (`know_...`) fit after "tell me", verb phrases (`do_...`) begin with a bare verb.
"""

QUESTIONS: dict[str, tuple[str, ...]] = {
    "know_order_status": (
        "what the status of {order_ref} is", "where {order_ref} stands", "how far along {order_ref} is",
        "whether {order_ref} has shipped", "if {order_ref} is on its way",
        "what is happening with {order_ref}", "what state {order_ref} is in",
        "whether {order_ref} moved at all since {weekday}",
    ),
    "know_order_items": (
        "what is in {order_ref}", "which things belong to {order_ref}", "what {I} bought with {order_ref}",
        "which items {order_ref} has", "what exactly {order_ref} contains", "what {I} put into {order_ref}",
    ),
    "know_order_amount": (
        "how much {order_ref} cost", "what {I} paid for {order_ref}", "what the total of {order_ref} is",
        "what {order_ref} came to", "how much was charged for {order_ref}",
    ),
    "know_order_address": (
        "where {order_ref} is being shipped", "which address {order_ref} goes to",
        "where you are sending {order_ref}", "what address stands on {order_ref}",
        "which place {order_ref} is meant for",
    ),
    "know_product_count": (
        "how many versions of the {name} (product {product}) are in stock",
        "how many options product {product}, the {name}, has",
        "how many kinds of the {name}, product id {product}, you can deliver",
        "what choice there is for the {name} (product {product})",
        "how many variants of product {product} ({name}) are available",
        "which options there are for the {name}, product {product}",
    ),
    "know_product_cheapest": (
        "what the cheapest version of the {name} costs, product {product}",
        "what the lowest price for product {product} ({name}) is",
        "how little {I} could pay for the {name} (product id {product})",
        "what the least expensive option of product {product}, the {name}, is",
        "which option of product {product}, the {name}, is the cheapest",
    ),
    "know_product_dearest": (
        "what the most expensive version of the {name} costs, product {product}",
        "what the top price for product {product} ({name}) is",
        "how much the top version of the {name} (product {product}) sets {me} back",
        "what the dearest version of product {product}, the {name}, goes for",
        "which option of product {product}, the {name}, is the priciest",
    ),
    "know_product_types": (
        "what kinds of products you sell", "how many types of products there are in the store",
        "which product types you carry", "what your range of products looks like",
        "what sorts of things your shop offers", "which kinds of goods you stock",
        "what product categories there are", "what all the product types in your catalogue are",
        "how many kinds of products you have",
    ),
    "know_account_balance": (
        "how much is left on {my} gift card (user id {user})",
        "what {my} gift card balance is, account {user}", "what balance the gift card of {user} shows",
        "how much money the gift card on account {user} still holds",
        "what remains on the gift card of user {user}",
    ),
    "know_account_address": (
        "which address is on file for {user}", "what address {my} account {user} shows",
        "where {my} profile {user} says {I} live", "which default address user {user} has",
        "what home address you hold for {user}",
    ),
    "know_account_orders": (
        "which orders are on {my} account {user}", "what orders user {user} has",
        "how many orders {my} profile {user} lists", "what {I} have ordered so far as {user}",
        "which purchases belong to the account {user}",
    ),
    "know_sum": (
        "what {numbers_and} come to together", "how much {numbers_plus} makes",
        "what {numbers_and} add up to", "what the sum of {numbers_and} is",
        "what {I} get when adding {numbers_and}", "what the total of {numbers_and} is",
        "how much {numbers_and} is in all", "what {numbers_plus} works out at",
    ),
    "know_difference": (
        "how much more {n0} is than {n1}", "what {n0} minus {n1} makes",
        "what the difference between {n0} and {n1} is", "what is left of {n0} after taking off {n1}",
        "how far {n0} lies above {n1}", "what {n0} less {n1} comes to", "by how much {n0} beats {n1}",
    ),
    "prices_of": (
        " ({names_list})", ", the prices of the {names_list}", ", for the {names_list}", "", "",
        " - that's the {names_list}",
    ),
}

REFUSALS: dict[str, tuple[str, ...]] = {
    "though": (
        ", although ", ", even though ", ", though ", ". {I} know that ", ". The thing is, ", ", and yes, ",
    ),
    "is_delivered": (
        "it was delivered {when}", "it has already been delivered", "it arrived {when}",
        "the parcel reached {me} {when}", "it is marked as delivered", "the courier delivered it {when}",
        "it was already delivered",
    ),
    "is_processed": (
        "it has already been processed", "it is marked as processed", "the page says processed",
        "it was processed {when}", "its status is processed by now", "it is already processed",
    ),
    "is_cancelled": (
        "it was cancelled {when}", "it is marked as cancelled", "it has already been cancelled",
        "the page shows it as cancelled", "it is already cancelled",
    ),
    "is_pending": (
        "it is still pending", "it hasn't arrived yet", "it has not shipped so far",
        "it isn't delivered yet", "the page says pending", "nothing has been delivered yet",
    ),
    "is_not_delivered": (
        "it has only been processed so far", "it isn't delivered yet", "it hasn't arrived yet",
        "it is still just processed", "the page says processed, not delivered",
    ),
    "do_refuse_cancel": (
        "cancel {order_np}{though}{fact}", "have {order_np} cancelled{though}{fact}",
        "call off {order_ref}{though}{fact}", "get {order_ref} cancelled{though}{fact}",
        "stop {order_ref} after all{though}{fact}", "undo {order_ref}{though}{fact}",
    ),
    "do_refuse_address": (
        "change the shipping address of {order_np}{though}{fact}",
        "send {order_ref} to another address{though}{fact}",
        "redirect {order_ref} to {my} {relative}{though}{fact}",
        "reroute {order_np} to {my} office{though}{fact}",
        "fix the delivery address on {order_ref}{though}{fact}",
    ),
    "do_refuse_payment": (
        "pay for {order_np} in another way{though}{fact}",
        "change the payment method of {order_ref}{though}{fact}",
        "charge another card for {order_np}{though}{fact}", "switch how {order_ref} was paid{though}{fact}",
    ),
    "do_refuse_return": (
        "return {item} from {order_ref}{though}{fact}", "send back {item} of {order_ref}{though}{fact}",
        "start a return for {item} in {order_ref}{though}{fact}",
        "get {my} money back for {item} from {order_ref}{though}{fact}",
        "exchange {item} from {order_ref}{though}{fact}",
    ),
    "do_refuse_other": (
        "cancel order {order}, which {my} {relative} placed on {their} own account",
        "cancel {my} {relative}'s order {order}",
        "have {order} cancelled, it belongs to {my} {relative}, not to {me}",
        "stop order {order} that {my} {relative} made under another account",
        "cancel {order} - not {my} own order but {my} {relative}'s",
        "call off {order}, ordered by {my} {relative} in {their} own name",
        "change order {order} of {my} {relative}, who has an account of {their} own",
        "get order {order} cancelled for {my} {relative}, whose account it is on",
    ),
    "do_refuse_unavailable": (
        "swap {item} in {order_ref} for {new} of product {product}, although {sold_out}",
        "get {new} of product {product} for {item} from {order_ref}, even though {sold_out}",
        "change {item} in {order_ref} to {new} (product {product}), but {sold_out}",
        "replace {item} of {order_ref} with {new}, product {product}, and yes, {sold_out}",
        "exchange {item} from {order_ref} for {new}; the product is {product} and {sold_out}",
    ),
    "sold_out": (
        "it is out of stock", "your page says it's sold out", "that one shows as out of stock",
        "it is listed as unavailable", "the site says out of stock", "it was sold out {when}",
        "it's marked sold out",
    ),
    "do_refuse_gift_card": (
        "pay for {order_ref} with {method}, although {short}, user id {user}",
        "put {order_ref} on {method} as user {user}, even though {short}",
        "switch {order_ref} to {method} for account {user}, but {short}",
        "charge {order_ref} to {method} in {my} profile {user}, though {short}",
        "use {method} for {order_ref}; {short} and {my} user id is {user}",
    ),
    "short": (
        "it only has {balance} left and the order is {amount}",
        "the card holds just {balance} while the order came to {amount}",
        "there's no more than {balance} on it against {amount} for the order",
        "its {balance} won't cover the {amount}", "the balance of {balance} falls short of {amount}",
    ),
}

DETAILS: dict[str, tuple[str, ...]] = {
    "about_lost_parcel": (
        "the tracking stopped moving {when}.", "the courier says it was dropped off, but nothing is here.",
        "{my} {relative} checked with all the neighbors.", "nothing has turned up since {weekday}.",
        "the parcel shop knows nothing of it.",
    ),
    "about_warranty_claim": (
        "it stopped working after {months} months.", "it simply died {when}.",
        "the repair shop sent {me} back to you.", "the switch came off {when}.",
        "it makes a grinding noise.",
    ),
    "about_price_match": (
        "another shop in {city} has it for less.", "{I} saw a lower price {when}.",
        "a competitor undercuts you by a lot.", "{my} {relative} paid far less elsewhere.",
        "the shop around the corner is cheaper.",
    ),
    "about_coupon_request": (
        "{my} {relative} got a voucher {when}.", "the newsletter promised ten percent off.",
        "{I} never received the welcome code.", "the code {I} got doesn't work.",
        "a loyal customer deserves one.",
    ),
    "about_damaged_on_arrival": (
        "the box was soaked when it came.", "one corner is smashed.", "the glass was in pieces.",
        "it rattles and won't switch on.", "the lid came off in the parcel.",
    ),
    "about_invoice_correction": (
        "the company name is missing on it.", "the tax line looks off.",
        "{my} accountant sent it back {when}.", "it shows {my} maiden name.",
        "the date on it can't be right.",
    ),
    "months": ("two", "three", "five", "six", "eight"),
    "leave_order": (
        "order {spare} stays as it is.", "leave {spare} alone.", "{spare} is fine, don't touch it.",
        "please do nothing about {spare}.", "no change to {spare}, though.",
        "this has nothing to do with {spare}.",
    ),
    "keep_item": (
        "{spare} stays.", "{I} will keep {spare}.", "not {spare}, that one is fine.",
        "leave {spare} as it is.", "{spare} is perfect and remains.",
    ),
    "not_method": (
        "not {spare}.", "please leave {spare} out of it.", "{spare} is not to be used.",
        "don't touch {spare}.", "nothing should go through {spare}.",
    ),
}

QUESTION_PHRASES = QUESTIONS | REFUSALS | DETAILS
