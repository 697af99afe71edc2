"""Table of phrases: who is writing, thanks, sign-offs, and the frame of forms and call notes."""

CLOSINGS: dict[str, tuple[str, ...]] = {
    "closing_polite": (
        "{thanks}!", "{thanks}, {wish_well}.", "{thank_you} for {helping}.", "{wish_well}!",
        "I'm grateful for {support}.", "many thanks in advance, and {wish_well}.",
        "{thanks}, you're {kind}.", "please let me know if {missing}.",
    ),
    "closing_brisk": (
        "thanks.", "thx.", "", "", "that's all.", "cheers.", "done.", "please confirm.", "that's it.",
        "ta.", "confirm by email.", "over to you.", "no call needed, thanks.",
    ),
    "closing_chatty": (
        "{thanks}, and give my love to {love}!", "right, back to {activity}!", "{thanks}, {wish_well}!",
        "you're a star!", "that's everything, phew!", "thanks a million!",
        "okay, the {pet} wants dinner. bye!", "have a great {weekday}!",
        "now I can get back to {activity}.",
    ),
    "closing_annoyed": (
        "please get it right this time.", "I expect {expecting}.", "let's see if it works now.",
        "and no survey afterwards, please.", "I hope that is clear.", "today, please.",
        "I won't write a {nth} time.", "that would be the least you can do.",
    ),
    "closing_anxious": (
        "is that all you need from me?", "please tell me {tellme}.", "I hope that's okay.",
        "sorry for {sorryfor}.", "could you confirm, so that I can {relax}?", "let me know if {missing}.",
        "thank you, thank you, thank you.", "I'd feel better with a short confirmation.",
    ),
    "closing_formal": (
        "I look forward to {lookforward}.", "thank you for {helping}.", "please confirm in writing.",
        "I remain at your disposal for {disposal}.", "your assistance is appreciated.",
        "kindly acknowledge receipt.", "I trust this is {trust}.", "with thanks for {support}.",
    ),
    "thanks": (
        "thanks", "thank you", "many thanks", "thanks so much", "thank you very much", "much appreciated",
        "thanks a lot", "thanks in advance",
    ),
    "wish_well": (
        "have a nice {weekday}", "have a lovely day", "all the best", "take care", "stay well",
        "enjoy your {weekday}", "have a good week", "stay warm", "happy {weekday}",
    ),
    "thank_you": ("thanks", "thank you", "many thanks", "thanks so much", "thank you very much"),
    "support": ("your help", "your time", "your patience", "the support", "your attention", "your trouble"),
    "helping": (
        "your help", "your time", "taking care of it", "sorting this out", "your patience",
        "looking after this", "handling it", "the support", "seeing to this",
    ),
    "kind": ("very kind", "a great help", "a lifesaver", "wonderful", "the best"),
    "missing": (
        "anything is missing", "you need more from me", "something is unclear", "there's a problem",
        "I left something out", "you have questions",
    ),
    "love": ("the team", "the warehouse folks", "everyone there", "your driver", "the night shift"),
    "expecting": (
        "an answer by {weekday}", "this done today", "a confirmation", "no more excuses",
        "it settled this week",
    ),
    "tellme": (
        "when it's done", "whether it worked", "if anything goes wrong", "once it is settled",
        "what happens next",
    ),
    "sorryfor": (
        "the trouble", "the long message", "all the questions", "rambling", "the mess", "my nerves",
    ),
    "relax": ("relax", "sleep tonight", "stop worrying", "tell my {relative}", "tick it off my list"),
    "lookforward": (
        "your reply", "a prompt settlement", "hearing from you", "your confirmation",
        "a reply by {weekday}",
    ),
    "disposal": ("any questions", "further details", "a call on {weekday}", "clarification"),
    "trust": ("in order", "sufficient", "clear", "a simple matter", "all you require"),
}

IDENTITY: dict[str, tuple[str, ...]] = {
    "who_email": (
        "my email is {email}.", "the email on my account is {email}.", "my account is under {email}.",
        "you'll find me under {email}.", "this is {first} {last}, {email}.", "I'm {first}, email {email}.",
        "{first} {last} here, my email address is {email}.", "I signed up with {email}.",
        "look me up by {email}.", "I'm registered as {email}.", "it's {first} {last} ({email}).",
        "for the login I use {email}.", "please use {email} to find my account.", "account email: {email}.",
        "I order with the address {email}.", "the account belongs to {email}.",
        "everything is booked under {email}.", "my name is {first} {last} and my email is {email}.",
        "you have me on file as {email}.", "to identify me: {email}.",
    ),
    "who_name_zip": (
        "my name is {first} {last} and my zip code is {zip}.", "I'm {first} {last}, zip {zip}.",
        "this is {first} {last} from zip code {zip}.", "{first} {last} here, zip {zip}.",
        "you'll find me as {first} {last}, zip code {zip}.",
        "it's {first} {last}, and the zip on file is {zip}.", "name: {first} {last}, zip: {zip}.",
        "I don't recall my email, but I'm {first} {last} and my zip is {zip}.",
        "the account is in the name of {first} {last}, zip {zip}.",
        "please look for {first} {last} in {zip}.", "I am {first} {last} and live in {zip}.",
        "{first} {last}, {zip}, that's me.", "no email at hand, so: {first} {last}, zip code {zip}.",
        "for verification: {first} {last}, {zip}.", "registered to {first} {last}, postal code {zip}.",
        "I go by {first} {last}, and my zip code reads {zip}.",
    ),
    "third_email": (
        "caller verified by email {email}.", "customer {first} {last}, email {email}.",
        "email on file: {email}.", "gave the email {email}.", "account found under {email}.",
        "spoke with {first} {last} ({email}).", "identified through {email}.",
        "{first} {last} called, email {email}.", "contact: {email}.", "customer's login is {email}.",
        "{first} {last} on the line, account {email}.",
    ),
    "third_name_zip": (
        "caller {first} {last}, zip {zip}.", "customer gave the name {first} {last} and zip code {zip}.",
        "spoke with {first} {last}, zip {zip}.", "verified as {first} {last}, {zip}.",
        "{first} {last} called, zip code {zip}.", "no email given; name {first} {last}, zip {zip}.",
        "account holder {first} {last}, postal code {zip}.", "identity checked: {first} {last}, zip {zip}.",
        "{first} {last} on the line, zip on file {zip}.",
    ),
    "form_email": (
        "email: {email}", "customer email: {email}", "account: {email}",
        "name: {first} {last}\nemail: {email}", "your email address: {email}", "contact email: {email}",
        "login: {email}", "from: {email}",
    ),
    "form_name_zip": (
        "name: {first} {last}\nzip: {zip}", "first name: {first}\nlast name: {last}\nzip code: {zip}",
        "customer: {first} {last}, zip {zip}", "full name: {first} {last}\npostal code: {zip}",
        "account holder: {first} {last}\nzip code on file: {zip}", "name / zip: {first} {last} / {zip}",
    ),
    "sign_off": (
        "best", "best regards", "kind regards", "regards", "cheers", "thanks", "yours", "warmly",
        "best wishes", "many thanks", "take care", "all the best", "see you", "so long",
    ),
    "sign_off_formal": (
        "sincerely", "yours sincerely", "yours faithfully", "yours truly", "respectfully",
        "with kind regards", "best regards", "kind regards",
    ),
    "note_start": (
        "call note.", "phone note, {weekday}.", "call taken at the {desk}.", "note from the {desk}:",
        "incoming call, {weekday} {daytime}.", "call log:", "callback not needed.", "call summary.",
        "{weekday} {daytime}, phone.", "transcribed from voicemail.", "ticket opened by the {desk}.",
        "line {minutes}, {daytime}.", "short call, {mood} customer.", "phone, {mood} customer.",
    ),
    "desk": (
        "front desk", "night desk", "second line", "evening team", "{city} desk", "returns desk",
        "overflow line",
    ),
    "daytime": ("morning", "noon", "afternoon", "evening", "late shift", "early shift"),
    "mood": (
        "calm", "friendly", "impatient", "polite", "tired", "cheerful", "nervous", "talkative", "hurried",
    ),
    "note_end": (
        "no callback needed.", "please process.", "caller was {mood}.",
        "customer will wait for a confirmation.", "promised an answer by {weekday}.",
        "told the caller we would see to it.", "end of note.", "",
        "line was noisy, details read back twice.", "nothing further.", "customer prefers email.",
        "call lasted {minutes} minutes.",
    ),
    "form_start": (
        "contact form", "customer request form", "web form", "support ticket", "online form, {weekday}",
        "help request", "service form", "message via contact page", "ticket from the app", "", "",
        "request from the {system}",
    ),
    "form_end": (
        "urgency: normal", "urgency: low", "urgency: high", "preferred reply: email",
        "preferred reply: phone", "best time to call: {daytime}", "newsletter: no", "comments: none",
        "how did you find us: {relative}", "", "", "", "rating of the {system}: fair",
    ),
}

PEOPLE = CLOSINGS | IDENTITY
