"""Table of phrases: what a customer says in a conversation, beside the phrases of plan mode's queries.

As in `tasks.phrasing`: `{name}` is another name or a fact, all in lower case. Names that the queries
have too are worded anew where a query holds an id that no customer knows. No phrase but those of
`yes` and `hand_over_yes` reads as a yes (`scoring.violations.is_yes`). A question asks for what the
task's `outputs` hold: products count and cost as far as they are in stock, product types are counted.
"""

from tasks.phrasing.phrases_talk import GREETINGS


def _hellos(name: str) -> tuple[str, ...]:
    """Return the greetings of the queries with a hello, which fit a chat and not only a letter."""
    return tuple(phrase for phrase in GREETINGS[name] if "{hello}" in phrase)


GREETED: dict[str, tuple[str, ...]] = {
    "errand": (
        "one quick thing", "a small job", "a short one", "something simple", "just one matter",
        "a two minute job", "a fast one", "a small favor", "nothing big", "an easy one",
        "short and sweet",
    ),
    "anyone": (
        "is anybody there?", "do you have a minute?", "got a minute?", "can I ask you something?",
        "is this live?", "am I talking to a person?", "who is on duty today?",
        "are you open on a {weekday}?",
    ),
    "plight": (
        "I'm a bit lost", "{system_part} confuses me", "I got stuck with your {system}",
        "I may have done it wrong", "I need someone to guide me", "my {relative} said to ask you",
        "I've been putting this off", "I'd rather ask before I break something",
        "I can't find my way around",
    ),
    "gripe": (
        "your {system} {failed}", "nobody answered {unanswered}", "I tried {tried} already",
        "the last agent {agent_did}", "I've had it with your {system}",
        "I expect better from {expected}", "I have been at it {duration}",
    ),
    "matter": (
        "I write about {concerns}", "this is about {concerns}", "I should like your help",
        "please note my request", "I have been a customer {customer_since}",
        "I refer to my {contact}", "I require your assistance", "I have a matter to raise",
        "I approach you with a request", "permit me a request",
    ),
    "formal_hello": (
        "good day", "good morning", "good afternoon", "good evening", "greetings", "dear agent",
        "dear team", "dear customer care", "dear support team", "dear customer service",
    ),
    "greeting_polite": (
        *_hellos("greeting_polite"), "{hello}, {anyone}", "{hello}, {errand}, if I may.",
        "{hello} and {wish_well}.", "{hello}, thank you for {service}!",
        "{hello}, my {relative} said you'd help.",
    ),
    "greeting_brisk": (
        *_hellos("greeting_brisk"), "{hello}, {errand}.", "{hello}, {errand}:",
        "{errand}, {hello}.", "{hello}, {anyone}", "{hello}, {going}.", "{errand} for you.",
        "I'm {going}, so {errand}.",
    ),
    "greeting_chatty": (
        *_hellos("greeting_chatty"), "{hello}, {anyone}", "{hello}! {story}.",
        "{hello} from {city}!", "{hello}, it's me and the {pet}.",
        "{hello}, I was just {activity}.", "{weather}, isn't it? {hello}!",
    ),
    "greeting_annoyed": (
        *_hellos("greeting_annoyed"), "{hello}. {gripe}.", "{hello}, {gripe}.", "{gripe}. {hello}.",
        "{gripe}.", "{hello}, {anyone}",
    ),
    "greeting_anxious": (
        *_hellos("greeting_anxious"), "{hello}, {plight}.", "{hello}. {plight}.", "{plight}.",
        "oh dear, {plight}.", "{hello}, {anyone}", "{hello}, sorry to {bother}.",
    ),
    "greeting_formal": (
        "{formal_hello}, {matter}.", "{formal_hello}. {matter}.", "{formal_hello}, {matter}.",
        "{matter}.",
    ),
}

REQUESTS: dict[str, tuple[str, ...]] = {
    "request": ("{first_do}",),
    "request_polite": (
        "{request}", "{request}", "{request}", "{request}", "could you please {vp}?",
        "would you be so kind as to {vp}?", "I'd be grateful if you could {vp}.",
        "might I ask you to {vp}?", "if it's no trouble, please {vp}.",
        "may I trouble you to {vp}?", "it would help me a lot to {vp}.",
        "I'd be much obliged if you could {vp}.", "would it be a bother to {vp}?",
    ),
    "request_brisk": (
        "{request}", "{request}", "{request}", "{vp}, please.", "{vp}.", "please {vp}.",
        "need to {vp}.", "it's simple: {vp}.", "just {vp}.", "want to {vp}.", "task for you: {vp}.",
        "quickly, please {vp}.", "to do: {vp}.", "your job: {vp}.", "can we {vp}?",
        "simply {vp}, thanks.",
    ),
    "request_chatty": (
        "{request}", "{request}", "{request}", "{request}", "I thought I'd {vp}.",
        "I'd love to {vp}.", "my little project today is to {vp}.", "I figured we could {vp}.",
        "my {relative} told me to {vp}.", "between you and me, I have to {vp}.",
        "guess what, I need to {vp}.", "it dawned on me to {vp}.", "I've made up my mind to {vp}.",
        "let's be brave and {vp}.", "could we maybe {vp}?", "my {relative} and I agreed to {vp}.",
        "high time to {vp}, I thought.",
    ),
    "request_annoyed": (
        "{request}", "{request}", "{request}", "{request}", "just {vp}.",
        "all I ask is that you {vp}.", "for heaven's sake, {vp}.", "it can't be that hard to {vp}.",
        "I insist that you {vp}.", "kindly {vp}, and soon.", "how difficult can it be to {vp}?",
        "I expect you to {vp}.", "would somebody finally {vp}?",
        "I shouldn't have to ask, but {vp}.", "do your job and {vp}.", "please, no excuses, {vp}.",
        "as any shop could do: {vp}.",
    ),
    "request_anxious": (
        "{request}", "{request}", "{request}", "{request}", "do you think you could {vp}?",
        "I'm hoping somebody can {vp}.", "would it be all right to {vp}?",
        "is it possible to {vp}, or am I too late?", "I'm not sure how, but I need to {vp}.",
        "could someone please {vp}?", "I was told that you can {vp}.", "am I allowed to {vp}?",
        "I don't want to be a nuisance, but please {vp}.", "if it isn't too much, {vp}, please.",
        "my worry is how to {vp}.", "I really must {vp}.", "perhaps you could {vp}?",
        "is this where I can {vp}?",
    ),
    "request_formal": (
        "{request}", "{request}", "{request}", "I hereby request that you {vp}.", "I wish to {vp}.",
        "I would ask you to {vp}.", "kindly {vp}.", "it is my intention to {vp}.",
        "I should like to {vp}.", "please be so good as to {vp}.", "I instruct you to {vp}.",
        "my instruction is as follows: {vp}.", "I respectfully ask that you {vp}.",
        "please arrange to {vp}.", "you are requested to {vp}.", "it is my wish to {vp}.",
    ),
    "again_polite": (
        "as I said,", "as I mentioned,", "if I may repeat it,", "coming back to it,", "as I wrote,",
        "this is still open:", "to return to my request,", "you may recall:", "once more, please:",
        "as noted at the start,",
    ),
    "again_brisk": (
        "again:", "as I said,", "same as before:", "once more:", "like I said,", "still open:",
        "once again:", "to say it again:", "next, as I wrote:", "as written above:",
    ),
    "again_chatty": (
        "as I was saying,", "like I told you,", "back to it then:", "where was I? ah right:",
        "as I said at the start,", "so, once more,",
        "remember what I told you:", "about that errand of mine,",
        "don't let me forget:", "as I rambled on about before,",
    ),
    "again_annoyed": (
        "as I said,", "I told you already:", "do I have to repeat it?", "for the second time:",
        "read it again, please:", "one more time:", "it is written above:", "did you even read it?",
        "this is still not done:", "you skipped this:",
    ),
    "again_anxious": (
        "sorry to repeat myself,", "as I said, I think,", "I hope I was clear:",
        "maybe I put it badly:", "just so it isn't forgotten:", "as I tried to say,",
        "I did mention this, I believe:", "you didn't forget this, did you?",
        "if I haven't said it yet:", "this still worries me:",
    ),
    "again_formal": (
        "as stated,", "to reiterate,", "as I wrote above,", "I refer to my request:",
        "as mentioned,", "as set out before,", "the following is still open:",
        "with reference to the above,", "to repeat my request:", "my request is unchanged:",
    ),
    "details": (
        "to be exact:", "in detail:", "here is what I need:", "it is this:", "let me explain:",
        "more precisely,", "what I meant:", "these are the details:", "to spell it out,",
        "now then,", "I looked it up:", "I have it here:", "from the beginning:",
        "it's about this:", "well, it goes like this:", "I found the papers:", "in other words,",
        "all right then:", "step by step:", "the full story:",
    ),
    "chase": (
        "please tell me when it is done: I wanted to {vp}.", "is that done now? I asked to {vp}.",
        "did it work? it was about this: {vp}.", "any news? I'm waiting for you to {vp}.",
        "has it gone through? the request was to {vp}.", "I'm still here. you were going to {vp}.",
        "what became of it? I wanted to {vp}.", "how is it coming along? you promised to {vp}.",
    ),
}

WANTED: dict[str, tuple[str, ...]] = {
    "do_change_profile_address": (
        "change the address on {my} account to {address}",
        "update {my} default address to {address}", "set {my} profile address to {address}",
        "put a new address on {my} account: {address}", "change {my} home address to {address}",
        "fix the address stored for {me}: {address}",
        "have {my} account show this address: {address}",
        "replace the address on file with {address}",
        "amend the address in {my} profile: {address}", "note {my} new home address, {address}",
        "register {my} move to {address}", "have {my} customer data say {address}",
    ),
    "do_wanted_cancel": (
        "cancel {order_np}", "have {order_np} cancelled", "call off {order_ref}",
        "get {order_ref} cancelled", "stop {order_ref} after all", "withdraw {order_np}",
        "cancel the whole of {order_ref}",
    ),
    "do_wanted_return": (
        "return {thing} from {order_ref}", "send back {thing} of {order_ref}",
        "start a return for {thing} in {order_ref}",
        "get {my} money back for {thing} from {order_ref}",
        "have {thing} of {order_ref} taken back", "return {thing}, part of {order_ref}",
    ),
    "do_wanted_swap": (
        "swap, in {order_ref}, {thing}", "change, within {order_ref}, {thing}",
        "exchange {thing} from {order_ref}", "trade {thing} in {order_ref}",
        "make a swap on {order_ref}: {thing}",
    ),
    "do_wanted_address": (
        "change the shipping address of {order_np}", "send {order_ref} to another address",
        "redirect {order_ref} to a different place", "reroute {order_np}",
        "fix the delivery address on {order_ref}", "have {order_np} go to a new address",
    ),
    "do_wanted_payment": (
        "pay for {order_np} in another way", "change the payment method of {order_ref}",
        "charge another card for {order_np}", "switch how {order_ref} was paid",
        "change the payment of {order_np}", "settle {order_ref} in a different way",
    ),
    "do_wanted_pay": (
        "pay for {order_ref} with {thing}", "put {order_ref} on {thing}",
        "switch {order_ref} to {thing}", "charge {order_ref} to {thing}",
        "use {thing} for {order_ref}", "have {order_np} billed to {thing}",
    ),
    "know_order_status": (
        "what the status of {order_ref} is", "where {order_ref} stands",
        "how far along {order_ref} is", "which status {order_ref} has",
        "what your system shows as the status of {order_ref}",
        "what is happening with {order_ref}", "what state {order_ref} is in",
        "what status {order_ref} has had since {weekday}",
    ),
    "know_product_types": (
        "how many kinds of products you sell",
        "how many types of products there are in the store", "how many product types you carry",
        "how many kinds of products your range has",
        "how many sorts of things your shop offers", "how many kinds of goods you stock",
        "how many product categories there are",
        "how many product types your catalogue lists", "how many kinds of products you have",
    ),
    "know_product_count": (
        "how many versions of the {thing} are in stock",
        "how many options of the {thing} are available",
        "how many kinds of the {thing} you can deliver",
        "among how many versions of the {thing} in stock {I} can choose",
        "how many variants of the {thing} one can get right now",
        "in how many versions the {thing} is available",
    ),
    "know_product_cheapest": (
        "what the cheapest version of the {thing} in stock costs",
        "what the lowest price for the {thing} in stock is",
        "how little {I} could pay for the {thing} right now",
        "what the least expensive {thing} in stock costs",
        "at what price the available versions of the {thing} start",
        "what {I} would pay for the cheapest {thing} available",
    ),
    "know_product_dearest": (
        "what the most expensive version of the {thing} in stock costs",
        "what the top price for the {thing} in stock is",
        "how much the top version of the {thing} in stock sets {me} back",
        "what the dearest available {thing} goes for",
        "how much the priciest {thing} in stock costs",
        "what the most expensive {thing} available would cost {me}",
    ),
    "know_account_balance": (
        "how much is left on {my} gift card", "what {my} gift card balance is",
        "how much money {my} gift card still holds", "what remains on {my} gift card",
        "what {my} gift card is still worth",
    ),
    "know_account_address": (
        "which address is on file for {me}", "what address {my} account shows",
        "where {my} profile says {I} live", "which default address {my} account has",
        "what home address you hold for {me}",
    ),
    "know_account_orders": (
        "which orders are on {my} account", "what orders {my} account lists",
        "which order numbers {I} have with you", "which orders {I} have placed so far",
        "which order numbers belong to {my} account",
    ),
    "do_cancel_vague": (
        "cancel an order", "call off something {I} ordered", "get an order cancelled",
        "stop an order", "drop something {I} bought",
    ),
    "do_return_vague": (
        "return something", "send something back", "start a return",
        "send back something that came",
    ),
    "do_exchange_vague": (
        "exchange something that was delivered", "swap a thing {I} received",
        "trade something that arrived", "arrange an exchange",
        "get another version of something {I} was sent",
    ),
    "do_change_items_vague": (
        "change something in an order", "alter an order",
        "pick another version of something {I} ordered", "modify what {I} ordered",
        "edit an order that has not shipped",
    ),
    "do_change_address_vague": (
        "change where an order is shipped", "redirect an order", "have an order sent elsewhere",
        "fix the shipping details of an order", "send an order to another place",
    ),
    "do_change_payment_vague": (
        "pay an order in another way", "switch how an order is paid",
        "change the payment of an order", "use something else to pay for an order",
        "move the payment for an order",
    ),
    "do_change_profile_address_vague": (
        "change the address of {my} account", "update where {I} live",
        "put a new address in {my} profile", "fix {my} home address", "note that {I} moved",
    ),
}

ANSWERS: dict[str, tuple[str, ...]] = {
    "well_polite": (
        "of course,", "gladly,", "", "certainly,", "with pleasure,", "thanks for asking,", "",
    ),
    "well_brisk": ("", "", "here:", "", "right,"),
    "well_chatty": ("oh,", "let me see,", "ah,", "well,", "good question,", "funny you ask,", ""),
    "well_annoyed": ("", "fine,", "if you must know,", "well,", "as you could have seen,", ""),
    "well_anxious": (
        "um,", "let me look,", "I think", "if I read it right,", "I hope this helps:", "",
    ),
    "well_formal": ("certainly:", "for your reference,", "", "as requested,", "to answer that,"),
    "answer_order": (
        "it is order {order}.", "it's {order}.", "the number is {order}.", "that would be {order}.",
        "the confirmation says {order}.", "I mean order {order}.", "my order number is {order}.",
        "you will find it as {order}.", "the one I mean is {order}.", "order {order} it is.",
    ),
    "answer_items": (
        "it is about {items}.", "it concerns {items}.", "I mean {items}.", "that would be {items}.",
        "we are talking about {items}.", "what I have in mind is {items}.", "namely {items}.",
    ),
    "answer_reason": (
        "{why}.", "because {why}.", "it's just that {why}.", "simply put, {why}.",
        "the reason is that {why}.", "the thing is, {why}.", "you see, {why}.",
        "to be honest, {why}.",
    ),
    "answer_payment": (
        "please use {method}.", "{method}, please.", "with {method}.",
        "I'd like {method} for that.", "please take {method}.", "it should be {method}.",
        "I would pick {method}.", "it all goes through {method}.", "{method} is the one for that.",
        "let it run over {method}.",
    ),
    "answer_address": (
        "the address is {address}.", "it goes to {address}.", "it should read {address}.",
        "here it is in full: {address}.", "the new one is {address}.",
        "please write down {address}.", "that would be {address}.", "my address is {address}.",
    ),
    "answer_email": (
        "it's {email}.", "mail reaches me at {email}.", "log in {email}, that's me.",
        "write to me at {email}, it's the one on file.", "{email} should bring me up.",
        "my user login reads {email}.", "search for {email}.", "you'll see {email} in my profile.",
        "{email} is where your newsletters go.", "my email is {email}.",
        "the address I use is {email}.", "you can find me by {email}.",
        "the email I signed up with is {email}.", "that would be {email}.",
        "my account has {email}.", "I use {email} for everything.",
    ),
    "answer_name_zip": (
        "{first} {last} is the name, {zip} the zip code.",
        "I'm in your books as {first} {last}, {zip}.", "you know me as {first} {last}, zip {zip}.",
        "the name is {first} {last}, the zip {zip}.", "{first} {last} speaking, zip code {zip}.",
        "you deliver to {first} {last} in {zip}.", "zip {zip}, name of {first} {last}.",
        "I live in {zip} and am called {first} {last}.", "look under {zip} for {first} {last}.",
        "{zip} is my zip, {first} {last} my name.",
    ),
    "card": (
        "my {brand} card ending in {digits}", "the {brand} card ending in {digits}",
        "my {brand} ending in {digits}", "my {brand} card, last four {digits}",
        "my {brand} ({digits})", "the {brand} with {digits} at the end", "my {brand} card {digits}",
        "the {brand} card (ends in {digits})", "card {digits}, my {brand}",
        "my {brand} number {digits}",
    ),
    "no_email": (
        "I do not remember my email.", "I don't remember my email.", "my email escapes me.",
        "I can't recall which email I used.", "the email I have forgotten.",
        "I no longer know my email.", "sadly I lost the email.",
        "which email I gave you, I can't say.", "I have too many emails to remember which.",
        "my {relative} set up the email, so I can't tell.",
    ),
    "no_account": (
        "I have no account with you.", "I don't have an account.",
        "there is no account in my name.",
    ),
    "first": (
        "wait, one thing first.", "not yet:", "hold on,", "wait, you still need this:",
        "not so fast:", "before that, wait:", "wait, something is missing.",
        "not before you know this:", "hold on a second:",
    ),
    "wrong": (
        "no, wait.", "no, that is wrong.", "no, not quite.", "no, you misread that.",
        "no, hold on.", "no, that isn't it.", "no, that's different.", "no, there is a slip in it.",
        "no, please change that:",
    ),
    "unasked": (
        "no, that is not what I asked for.", "no, I never asked for that.",
        "no, that's something else.", "no, you got me wrong.", "no, not that.",
        "no, that was not my request.", "no, that's a mix-up.",
    ),
    "waiting": (
        "thanks, I am here.", "no rush, I'm here.", "I'll stay on the line.", "take your time.",
        "fine, I'm waiting.", "thank you, I'll hang on.", "I am still here.",
        "all right, I have a minute.", "thanks for checking.",
    ),
    "hand_over": (
        "then please hand me over now.", "please put me through to someone.",
        "then I'd like to speak to that person.", "please pass me on to your colleague.",
        "then transfer me, please.", "I'm ready to be handed over.",
    ),
    "hand_over_yes": (
        "yes, please hand me over.", "yes, put me through.", "yes, a colleague would be best.",
        "sure, transfer me, please.", "okay, pass me on, please.",
        "yes, I'd rather talk to a person.",
    ),
}

YES: dict[str, tuple[str, ...]] = {
    "yes_word": (
        "yes", "yes", "yes", "yes please", "yeah", "yep", "sure", "okay", "absolutely",
        "yes indeed", "yes, exactly", "correct", "ok", "exactly",
    ),
    "go": (
        "go ahead", "please go ahead", "please do", "do it", "please proceed", "you may proceed",
        "go for it", "do that", "you have my word", "I agree", "I confirm", "that is settled",
        "make it so", "let's do it", "off you go", "carry on", "get it done", "by all means",
        "let's have it", "press the button", "it's a deal", "set it in motion",
    ),
    "right": (
        "that's right", "that is correct", "that's what I want", "that is it exactly", "you got it",
        "everything is right", "the details are right", "just like that", "that's the plan",
        "as you say", "it all matches", "that is what I asked for", "I checked it and it's right",
        "nothing to add", "that sounds good", "you understood me well", "it's all there",
        "that's the one", "every word of it", "it is as I meant it", "that agrees with my notes",
        "all good", "you read my mind", "it looks right to me", "word for word", "that fits",
    ),
    "act_do_cancel": (
        "cancel it", "please cancel {order}", "call it off", "drop the order", "cancel the order",
        "{order} can be cancelled", "scrap {order}", "withdraw it", "that order has to go",
    ),
    "act_do_return": (
        "take it back", "start the return", "please return it", "send the label",
        "set up the return", "that's what goes back", "refund it like that", "arrange the return",
        "I'll send it off",
    ),
    "act_do_exchange": (
        "exchange it", "please swap it", "make the swap", "set up the exchange",
        "I'd love the other one", "that is the one I meant", "trade it like that",
        "arrange the exchange",
    ),
    "act_do_change_items": (
        "change it", "please switch it", "make the change", "that is the version I meant",
        "update the order", "change {order} like that", "put the new one in",
        "I prefer it that way",
    ),
    "act_do_change_address": (
        "ship it there", "that is the place", "send it to that address", "redirect {order}",
        "change the address", "that's where it should go", "deliver it there",
        "the address is right",
    ),
    "act_do_change_payment": (
        "charge it that way", "use {method}", "take {method} for it", "switch the payment",
        "let {method} pay", "I want to pay like that", "bill {method}", "change the payment",
    ),
    "act_do_change_profile_address": (
        "save that address", "that's where I live now", "update my account", "put it in my profile",
        "that is my new home", "the address is right", "change it in my account",
    ),
    "yes_polite": (
        "{yes}, {thank_you}.", "{yes}, please.", "{yes}. {thank_you}!",
        "{yes}, that's good of you.", "{yes}.", "{yes}, I appreciate {appreciate}.",
        "{yes}, {thank_you} for {helping}.", "lovely, {yes}.", "{yes}, if you would.",
        "perfect, {yes}.",
    ),
    "yes_brisk": ("{yes}.", "{yes}.", "{yes_word}.", "{yes}, thanks.", "{yes_word}, {go}."),
    "yes_chatty": (
        "{yes}!", "oh {yes}, lovely!", "{yes}, you're a star!", "great, {yes}!",
        "{yes}, my {relative} will be pleased.", "wonderful, {yes}.",
        "{yes}, and then I can get back to {activity}.", "ha, {yes}!", "{yes}, says the {pet} too.",
        "brilliant, {yes}!", "{yes}, my {relative} agrees.", "hooray, {yes}!",
    ),
    "yes_annoyed": (
        "{yes}, finally.", "{yes}, and quickly.", "{yes}. at last.", "{yes}.",
        "for the record, {yes}.", "{yes}, what else?", "{yes}, I have waited long enough.",
        "as I said, {yes}.", "of course, {yes}.", "{yes}, how often do you ask?",
        "obviously {yes}.", "{yes}, and then leave it alone.",
    ),
    "yes_anxious": (
        "{yes}, I think that's everything.", "{yes}, I hope.", "I read it twice: {yes}.",
        "um, {yes}.", "{yes}, if that's all you need.", "I believe so, {yes}.", "{yes}. phew.",
        "{yes}, please tell me {tellme}.", "let me read that again: {yes}.",
        "{yes}, my {relative} thinks so too.", "good, {yes}.", "{yes}, then I can {relax}.",
    ),
    "yes_formal": (
        "{yes}.", "{yes}, thank you very much.", "{yes}, with thanks for {support}.",
        "{yes}, I give my consent.", "for the avoidance of doubt, {yes}.",
        "{yes}, kindly see to it.", "having read it, {yes}.", "{yes}, you have my approval.",
        "I can affirm: {yes}.", "very well, {yes}.", "{yes}, at your earliest convenience.",
        "in answer to your question, {yes}.",
    ),
    "yes": (
        "{yes_word}, {go}", "{yes_word}, {right}", "{yes_word}, {act}", "{yes_word}, {right}, {go}",
        "{yes_word}, {right}, {act}", "{yes_word}: {act}", "{right}, {yes_word}",
        "{act}, {yes_word}",
    ),
}

GOODBYES: dict[str, tuple[str, ...]] = {
    "enough": (
        "that is all then", "that's all", "that was everything", "nothing else",
        "that's it from me", "nothing more for today", "I'm all set", "no, that's all",
        "that covers it", "I have what I need", "that will do", "there is nothing else",
        "my list is done", "that was the last thing", "I can't think of anything else",
        "that settles it", "we're done here", "I need no more than that", "I'm happy with that",
        "that answers it", "no more questions", "nothing further", "my part is done",
        "we can leave it there", "that wraps it up", "I'll leave it at that",
        "no, we've covered it", "it's all dealt with", "enough for one day",
        "nothing comes to mind",
    ),
    "see_you": (
        "goodbye", "bye", "bye now", "bye for now", "see you", "take care", "until next time",
        "so long", "all the best", "cheers", "have a good one", "good day", "bye bye", "talk soon",
        "farewell", "ciao", "over and out", "that's me gone", "see you around",
    ),
    "farewell": (
        "have a lovely day", "take care", "all the best", "stay well", "have a good week",
        "enjoy your evening", "have a quiet shift", "keep well", "have a nice rest of the day",
        "enjoy your break", "mind yourself", "have a pleasant afternoon", "stay safe",
        "good luck with the next one", "rest well tonight", "regards to the team",
        "until the next order", "have fun",
    ),
    "bye_polite": (
        "{enough}. {thank_you} for {helping}, {see_you}.", "{enough}. {thank_you}, {farewell}.",
        "{enough}, {thank_you}. {see_you}!", "{thank_you} for {helping}. {enough}, {farewell}!",
        "you were {kind}, {thank_you}. {see_you}.",
        "I'm grateful for {support}. {enough}, {see_you}.",
        "{enough}. it was good of you, {see_you}.", "{enough}, and {farewell}!",
        "{thank_you}, {enough}. {farewell}.", "{farewell}, and {thank_you} for {support}.",
    ),
    "bye_brisk": (
        "{enough}. {see_you}.", "{enough}, thanks.", "{enough}, {see_you}.", "thanks, {see_you}.",
        "{enough}.", "done. {see_you}.", "good, {enough}.", "thx, {see_you}.",
        "{see_you}, {enough}.", "right, {enough}. {see_you}.", "ta, {enough}.",
        "{enough}, off I go.", "{see_you}, thanks for {support}.", "{enough}, {going_next} now.",
    ),
    "bye_chatty": (
        "{enough}! {thank_you}, and give my love to {love}!",
        "{enough}. right, back to {activity}, {see_you}!", "you're a star! {enough}, {farewell}!",
        "{enough}, phew! the {pet} wants dinner. {see_you}!",
        "{thank_you}, you were {kind}. now for {drink}. {see_you}!",
        "{enough}. my {relative} will be so relieved, {see_you}!",
        "the {pet} says thanks too. {enough}, {farewell}!",
        "{enough}, now I can get on with {activity}!",
        "{see_you}, my {relative} is calling. {enough}!",
        "{drink} and then {activity}, that's my plan. {enough}!",
        "off to {city} next, {enough}. {farewell}!", "what a nice chat! {enough}, {see_you}.",
    ),
    "bye_annoyed": (
        "{enough}. and no survey, please. {see_you}.", "finally. {enough}, {see_you}.",
        "{enough}. that took long enough.", "well, {enough}. {see_you}.",
        "{enough}. I hope I need not come back, {see_you}.", "at last. {enough}.",
        "{enough}, and please fix your {system}. {see_you}.", "{see_you}. {enough}.",
        "I've spent enough time on this. {see_you}.",
        "{enough}. next time I'll try another shop, {see_you}.",
        "{enough}. tell them your {system} {failed}.", "that's that. {enough}, {see_you}.",
        "hm. {enough}, {farewell}.",
    ),
    "bye_anxious": (
        "{enough}, I think. {thank_you} for {support}, {see_you}.",
        "all right then. {enough}, {see_you}.",
        "{enough}, I hope. sorry for {sorryfor}, {see_you}.",
        "good, now I can {relax}. {enough}, {thank_you}.", "{thank_you}, {enough}. {farewell}.",
        "sorry again for {sorryfor}. {enough}, {see_you}.",
        "{enough}, as far as I can tell. {farewell}.",
        "I'll write it all down. {enough}, {see_you}.",
        "I'll tell my {relative}. {enough}, {thank_you}.",
        "{enough}, unless I forgot something. {see_you}.", "you were {kind}. {enough}, {farewell}.",
        "I believe {enough}. {see_you}.",
    ),
    "bye_formal": (
        "{enough}. I thank you for {support}. goodbye.",
        "{enough}. {thank_you} for {helping}. good day.",
        "with thanks for {support}, I close here. {enough}.",
        "{enough}. your assistance is appreciated. goodbye.",
        "thank you, {enough}. I wish you a pleasant day.",
        "I consider the matter closed. {enough}, {see_you}.",
        "{enough}. {thank_you} for {helping}.", "my thanks for {support}. {enough}, goodbye.",
        "I have noted it. {enough}, and {farewell}.",
        "I am obliged to you for {helping}. {enough}.", "{enough}, with regards.",
        "I take my leave. {enough}, good day.",
    ),
    "gave_up": (
        "this leads nowhere, I will try another time. {see_you}.",
        "we are going in circles. {see_you}.", "I give up for today. {see_you}.",
        "I'll call instead. {see_you}.", "forget it, I have to go. {see_you}.",
        "this is no use, I'll come back later. {see_you}.",
        "I'd rather write to someone else. {see_you}.",
    ),
}

CUSTOMER = GREETED | REQUESTS | WANTED | ANSWERS | YES | GOODBYES
