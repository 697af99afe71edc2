"""Table of phrases: greetings and small talk.

Alternatives by name: `{name}` is another name or a fact, `{an}` is "a" or "an". All in lower case;
sentences get their capitals later.
"""

GREETINGS: dict[str, tuple[str, ...]] = {
    "hello": (
        "hi", "hello", "hey", "hi there", "hello there", "hey there", "good morning", "good afternoon",
        "good evening", "greetings", "hi team", "hello team", "hi folks", "hey folks", "hi everyone",
        "morning", "afternoon", "evening", "good day", "howdy", "hiya", "hello again", "hi again",
    ),
    "greeting_polite": (
        "{hello}, I hope {hope}.", "{hello}, and thank you for {service}.", "{hello}! I hope {hope}.",
        "{hello}, hoping {hope}.", "{hello}, thanks for being there.", "{hello}.",
        "{hello}, sorry to {bother}.", "{hello}, if you have a minute.",
        "{hello}, I would be glad of some help.", "{hello}, could I borrow you for a moment?",
    ),
    "greeting_brisk": (
        "{hello}.", "{hello},", "", "quick one.", "short request.", "{hello}, quick one:",
        "{hello}, keeping it short:", "straight to it:", "{hello}, one thing:", "need this done today.",
        "{hello}, in a hurry here.", "no long story:", "as briefly as I can:", "just this:",
    ),
    "greeting_chatty": (
        "{hello}! {weather}.", "{hello}, it's me again!", "{hello}! how is {weekday} treating you?",
        "{hello}, hope your {weekday} is going better than mine!", "{hello}! {weather} over here.",
        "{hello}, happy {weekday}!", "oh good, somebody is here!", "{hello}, lovely to reach a person.",
        "{hello}! finally sitting down with {drink} to sort this out.",
    ),
    "greeting_annoyed": (
        "{hello}.", "{hello}, this is getting old.", "honestly, I did not expect to write again.",
        "{hello}, {nth} time I am contacting you.", "right, {nth} attempt.", "{hello}, I'm rather fed up.",
        "I have been waiting {duration} for an answer.", "{hello}, your {system} is driving me mad.",
        "well, your {system} is no help at all.", "{hello}, please sort this out properly.",
    ),
    "greeting_anxious": (
        "{hello}, I hope this is the right place.", "{hello}, I'm a little worried.",
        "{hello}, I'm not sure how this works.", "um, {hello}.", "{hello}, I hope it isn't too late.",
        "{hello}, I'm new to {system_online}.", "sorry, {hello}, I couldn't work out {system_part}.",
        "{hello}, I really hope you can help.", "{hello}, please bear with me.",
        "{hello}, I've never done this before.",
    ),
    "greeting_formal": (
        "dear customer service,", "dear sir or madam,", "to whom it may concern,", "dear team,",
        "dear support team,", "good day,", "dear store team,", "dear colleagues,", "dear customer care,",
        "for the attention of customer service:",
    ),
    "hope": (
        "you are well", "you're having a good {weekday}", "your week is going well", "this finds you well",
        "all is well with you", "the queue is not too long today", "you can help",
        "{weekday} is being kind to you", "you're keeping warm", "it is a calm day for you",
    ),
    "service": (
        "your help last time", "the quick reply", "taking my message", "your patience",
        "the good service so far", "looking into this", "reading this", "being open on a {weekday}",
    ),
    "bother": (
        "bother you", "write so late", "trouble you on a {weekday}", "take up your time",
        "come back so soon", "write twice", "interrupt", "jump the queue like this",
    ),
    "weekday": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "nth": ("second", "third", "fourth", "umpteenth", "fifth"),
    "duration": (
        "two days", "since {weekday}", "all week", "twenty minutes", "half an hour", "for days",
        "the whole morning", "nearly a week", "an hour",
    ),
    "system": (
        "website", "app", "chat robot", "phone menu", "order page", "help page", "login page",
        "self-service page", "automatic reply", "mobile site",
    ),
    "system_online": (
        "online shopping", "your app", "this kind of form", "your website", "writing to shops", "the chat",
        "ordering things by phone",
    ),
    "system_part": (
        "the menu", "which button to press", "the help page", "the form", "your app", "where to click",
        "how to do it myself", "the account page",
    ),
    "drink": ("a coffee", "a cup of tea", "some cocoa", "my second coffee", "a glass of juice"),
    "weather": (
        "rainy {weekday}", "what a sunny day", "it's pouring", "it's freezing", "the heat is unbearable",
        "snow up to the knees", "windy as anything", "grey skies again", "a lovely spring morning",
        "fog all day long",
    ),
}

SMALL_TALK: dict[str, tuple[str, ...]] = {
    "talk_polite": (
        "I always enjoy {shopping} with you.", "{praise}.", "you were very kind {lasttime}.",
        "no rush at all, {whenever}.", "I know you are busy {busy}.",
        "my {relative} recommended your shop to me.", "I appreciate {appreciate}.",
        "it shouldn't take long, I hope.",
    ),
    "talk_brisk": (
        "", "", "I'm {going}.", "I have a {meeting} in {minutes} minutes.", "typing this {place}.",
        "no need to call back.", "{going_next} soon, so please be quick.", "short on time {today}.",
    ),
    "talk_chatty": (
        "{story}.", "{story}, but that's another tale.", "my {relative} {relative_does} {meanwhile}.",
        "I was just {activity} when I remembered this.", "you wouldn't believe {unbelievable}.",
        "the {pet} {pet_does} while I type this.", "we are {family_event}, so the house is upside down.",
        "I told my {relative} I would deal with it {today}.", "{weather_talk}.",
        "I'm writing {place}, by the way.",
    ),
    "talk_annoyed": (
        "I tried {tried} and got nowhere.", "your {system} {failed}.", "nobody answered {unanswered}.",
        "I expected better from {expected}.", "this should not take {duration_noun}.",
        "the last agent {agent_did}.", "I am not going to explain it {nth_again}.",
        "please don't send me to {elsewhere} again.",
    ),
    "talk_anxious": (
        "I'm afraid I {afraid}.", "I hope I'm not {hopenot}.", "I've been {fretting} {today}.",
        "please tell me if I {didwrong}.", "I checked everything {checked}.",
        "my {relative} usually does this for me.", "I couldn't sleep over this.",
        "I wrote it all down to be safe.",
    ),
    "talk_formal": (
        "I am writing with regard to my account.", "I refer to my earlier {contact}.",
        "kindly find the particulars below.", "the following concerns {concerns}.",
        "I should be obliged for {obliged}.", "please treat this as {treat}.",
        "I have been a customer {customer_since}.", "for your records, {records}.",
    ),
    "shopping": ("shopping", "ordering", "browsing", "buying gifts", "dealing", "doing business"),
    "praise": (
        "the packaging was lovely", "your delivery driver is a gem", "your prices are fair",
        "the catalogue is a joy to read", "your newsletter made me smile",
        "you're the only shop my {relative} trusts", "your team never lets me down",
    ),
    "lasttime": (
        "last time", "in {month}", "last {weekday}", "when I called before", "a while ago",
        "the last time we spoke", "over the holidays",
    ),
    "month": (
        "January", "February", "March", "April", "June", "July", "August", "September", "October",
        "November", "December",
    ),
    "whenever": (
        "whenever you get to it", "tomorrow is fine too", "take your time", "any time this week",
        "by {weekday} would be perfect", "after lunch will do",
    ),
    "busy": (
        "at this time of year", "on a {weekday}", "before the holidays", "in {month}", "these days",
        "after the sale", "around lunchtime",
    ),
    "appreciate": (
        "your help", "the effort", "it a lot", "you taking this on", "a hand with it", "every bit of help",
        "you staying open late",
    ),
    "relative": (
        "sister", "brother", "mother", "father", "wife", "husband", "son", "daughter", "aunt", "uncle",
        "neighbor", "flatmate", "cousin", "grandmother", "colleague", "partner", "niece", "nephew",
    ),
    "going": (
        "about to board a train", "on my lunch break", "between two meetings", "on the bus",
        "heading out the door", "waiting at the dentist's", "at work right now", "picking up the kids",
        "in the middle of moving", "on a shaky connection",
    ),
    "going_next": ("boarding", "driving off", "back to work", "off to class", "leaving", "signing off"),
    "meeting": ("meeting", "call", "class", "flight to catch", "bus to catch", "shift", "dinner"),
    "minutes": ("five", "ten", "fifteen", "twenty", "thirty"),
    "place": (
        "on my phone", "from the office", "from a hotel in {city}", "from the train", "in a waiting room",
        "from my {relative}'s laptop", "with one hand", "from the airport", "from the kitchen table",
        "at the library", "from bed, to be honest", "in the car park",
    ),
    "city": (
        "Boston", "Denver", "Lisbon", "Oslo", "Toronto", "Chicago", "Dublin", "Prague", "Seattle", "Austin",
        "Vienna", "Phoenix",
    ),
    "today": (
        "today", "this morning", "tonight", "this afternoon", "since lunch", "all day", "since {weekday}",
    ),
    "story": (
        "we just got back from {city}", "my {relative} is visiting from {city}",
        "the whole family has a cold", "I spent {weekday} cleaning out the garage",
        "my {relative} is getting married in {month}", "I finally retired in {month}",
        "we're repainting the hallway", "I started {hobby} in {month}",
        "my {relative} talked me into {hobby}", "I dropped my phone in the sink on {weekday}",
        "the kids are off school this week", "I've been dreaming of {city} all winter",
        "our street is closed for a marathon", "I won a quiz night in {city}",
    ),
    "hobby": (
        "pottery", "running", "birdwatching", "baking bread", "chess", "swimming", "gardening",
        "the violin", "kickboxing", "painting", "stargazing", "yoga at dawn",
    ),
    "relative_does": (
        "is singing in the next room", "keeps asking about dinner", "is assembling a shelf",
        "is watching the game", "is on the phone with the bank", "says hello", "is learning the drums",
        "is packing for {city}",
    ),
    "meanwhile": ("as we speak", "right now", "in the background", "today", "at the moment", "again"),
    "activity": (
        "making soup", "watering the plants", "walking the {pet}", "sorting receipts",
        "looking through old photos", "folding laundry", "planning a trip to {city}", "cleaning my inbox",
        "waiting for the plumber", "repotting a fern",
    ),
    "unbelievable": (
        "the week I've had", "what my {relative} did on {weekday}", "how busy {city} was",
        "the traffic this morning", "the state of my desk", "how long my to-do list is",
    ),
    "pet": ("cat", "dog", "parrot", "puppy", "kitten", "rabbit", "hamster"),
    "pet_does": (
        "is sitting on the keyboard", "is barking at the mailman", "keeps stealing my pen",
        "is asleep on the paperwork", "wants attention", "is chewing the box",
    ),
    "family_event": (
        "moving to a new flat", "hosting my {relative}'s birthday", "expecting guests on {weekday}",
        "redoing the kitchen", "packing for {city}", "getting ready for a wedding",
    ),
    "weather_talk": (
        "it hasn't stopped raining since {weekday}", "spring can't come soon enough",
        "the garden is loving this rain", "the roads are icy here", "the sun is finally out in {city}",
        "it's far too hot to think",
    ),
    "tried": (
        "the {system}", "your {system} three times", "calling on {weekday}", "the chat yesterday",
        "two other agents", "the phone line", "every menu there is", "it myself",
    ),
    "failed": (
        "keeps logging me out", "froze twice", "only shows a spinning wheel", "sends me in circles",
        "has been down since {weekday}", "won't load on my phone", "shows a blank page",
    ),
    "unanswered": (
        "my message from {weekday}", "the phone", "my last two emails", "when I called on {weekday}",
        "the chat last night",
    ),
    "expected": (
        "a shop this size", "you", "your team", "a store with your name", "people I pay this much",
    ),
    "duration_noun": ("a week", "three calls", "a whole afternoon", "this long", "five emails"),
    "agent_did": (
        "hung up on me", "promised to call back", "had no idea", "was no help", "sent me a survey instead",
        "told me to wait until {weekday}",
    ),
    "nth_again": ("a third time", "all over again", "twice", "to yet another person"),
    "elsewhere": ("the help page", "another department", "the chat robot", "a survey", "the phone menu"),
    "afraid": (
        "am bad at this", "may have waited too long", "don't understand the {system}",
        "am running out of time", "left this a bit late", "get nervous with these things",
    ),
    "hopenot": (
        "too late", "causing trouble", "in the wrong place", "asking too much", "forgetting something",
        "mixing anything up",
    ),
    "fretting": (
        "fretting about this", "going back and forth", "worrying", "staring at the {system}", "on edge",
    ),
    "didwrong": (
        "forgot something", "need to do anything else", "left anything out", "should call instead",
        "have to sign something",
    ),
    "checked": ("twice", "three times", "with my {relative}", "before writing", "against the receipt"),
    "contact": ("telephone call", "letter", "message of {weekday}", "enquiry in {month}", "email", "visit"),
    "concerns": (
        "my recent dealings with your store", "my account with you", "a matter I wish to settle",
        "a request that I trust is routine", "something that needs your attention",
    ),
    "obliged": (
        "your prompt attention", "a written confirmation", "a reply by {weekday}", "your assistance",
        "swift handling", "an answer in due course",
    ),
    "treat": (
        "a formal request", "routine", "confidential", "my final word on it", "a matter of some urgency",
    ),
    "customer_since": (
        "for many years", "since {month}", "for a decade", "since you opened", "for some time now",
        "for three years",
    ),
    "records": (
        "I am the account holder", "I write on my own behalf", "no earlier ticket exists",
        "I can be reached in the evening", "this is my first request",
    ),
}

TALK = GREETINGS | SMALL_TALK
