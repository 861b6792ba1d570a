"""The subjects of the bundled model's pretraining text: thirteen domains, none of them restaurants.

A slot has several names, a source of values (a list, or a function of a random generator) and wordings, in which
``{v}`` stands for the value. If the values have wordings of their own, such as yes and no, the slot maps them.
"""

from __future__ import annotations

from scripts.tiny_gpt2 import values as make
from scripts.tiny_gpt2.slots import BY, CITY, COLOUR, FACILITY, LANGUAGE, PRICE, WEIGHT, YEAR, Domain, Slot, choice
from utils.data._sentences import Fact

HOTEL = Domain(
    ("hotel", "name", "property"), make.venue, ("hotel", "inn", "hostel", "guest house", "lodge"),
    (
        CITY,
        YEAR,
        Slot(("rooms", "number of rooms", "roomCount"), lambda rng: make.number(rng, 4, 400),
             Fact(("has {v} rooms", "offers {v} rooms", "counts {v} rooms"), ("{v}-room",), ("with {v} rooms",))),
        Slot(("stars", "hotel class", "starRating"), lambda rng: f"{rng.choice('12345')} stars",
             Fact(("has {v}", "was awarded {v}", "holds {v}"), (), ("with {v}", "of {v}"))),
        Slot(("close to", "landmark", "near"), make.venue,
             Fact(("is close to {v}", "faces {v}", "stands opposite {v}", "is two minutes from {v}"), (),
                  ("near {v}", "opposite {v}", "across from {v}"), ("Close to {v}", "Opposite {v}"))),
        FACILITY,
        choice(("petsAllowed", "pets", "pets welcome"), {
            "yes": Fact(("allows pets", "welcomes dogs and cats", "is happy to have your pet"), ("pet-friendly",),
                        mood=1),
            "no": Fact(("does not allow pets", "takes no animals", "asks guests to leave pets at home"), (), mood=-1),
        }),
        choice(("breakfast", "breakfast included"), {
            "included": Fact(("includes breakfast", "serves a free breakfast"), (), ("with breakfast",), mood=1),
            "extra": Fact(("charges extra for breakfast", "does not include breakfast"), (),
                          ("without breakfast",), mood=-1),
        }),
        choice(("service", "customer rating", "quality"), {
            "poor": Fact(("has poor service", "disappoints most guests"), ("mediocre",), mood=-1),
            "decent": Fact(("has decent service", "is all right for a night"), ("decent",)),
            "excellent": Fact(("has excellent service", "delights its guests"), ("excellent", "first-class"), mood=1),
        }),
    ),
    ("Stay at", "Book", "Try"),
)  # fmt: skip
FILM = Domain(
    ("title", "film", "movie"), make.title, ("film", "movie", "picture"),
    (
        Slot(("director", "directed by"), make.person,
             Fact(("was directed by {v}", "was shot by {v}", "is the work of {v}"), (), BY)),
        Slot(("year", "release year", "releaseYear"), make.year,
             Fact(("came out in {v}", "was released in {v}", "first ran in {v}"), ("{v}",), ("from {v}",), ("In {v}",),
                  order=1)),
        Slot(("genre", "kind"), make.GENRES, Fact(("belongs to the {v} genre", "is pure {v}"), ("{v}",), order=4)),
        Slot(("starring", "lead actor", "cast"), make.person,
             Fact(("stars {v}", "has {v} in the lead", "features {v}"), (), ("starring {v}", "with {v}"))),
        Slot(("length", "running time", "duration"), lambda rng: f"{make.number(rng, 70, 210)} minutes",
             Fact(("lasts {v}", "runs for {v}", "takes {v} to watch"), (), ("of {v}",))),
        choice(("reviews", "critics", "score"), {
            "good": Fact(("won over the critics", "received good reviews"), ("acclaimed",), mood=1),
            "mixed": Fact(("divided the critics", "received mixed reviews"), ()),
            "bad": Fact(("failed with the critics", "received bad reviews"), ("forgettable",), mood=-1),
        }),
        LANGUAGE,
    ),
    ("Watch", "See", "Try"),
)  # fmt: skip
LAPTOP = Domain(
    ("model", "product", "name"), make.product, ("laptop", "computer", "notebook", "tablet", "phone"),
    (
        Slot(("memory", "ram"), lambda rng: f"{rng.choice(('4', '8', '16', '32', '64'))} GB",
             Fact(("has {v} of memory", "comes with {v} of memory", "carries {v} of memory"), (),
                  ("with {v} of memory",))),
        Slot(("battery", "batteryLife"), lambda rng: f"{make.number(rng, 3, 24)} hours",
             Fact(("runs for {v} on one charge", "has a battery life of {v}", "lasts {v}"), (),
                  ("with a battery life of {v}",))),
        Slot(("screen", "display size"), lambda rng: f"{make.number(rng, 5, 18)} inch",
             Fact(("has a {v} screen", "shows everything on a {v} display"), ("{v}",), ("with a {v} screen",))),
        PRICE, COLOUR, WEIGHT,
        choice(("isForBusiness", "business use"), {
            "yes": Fact(("is made for business", "belongs in an office"), ("professional",)),
            "no": Fact(("is not meant for business", "is a toy more than a tool"), ()),
        }),
        choice(("priceRange", "priceClass"), {
            "budget": Fact(("is a bargain", "costs very little"), ("budget",), mood=1),
            "medium": Fact(("sits in the middle of the market", "has an ordinary price"), ("mid-market",)),
            "premium": Fact(("is priced for the few", "costs a great deal"), ("premium", "luxury"), mood=-1),
        }),
    ),
    ("Buy", "Consider", "Choose"),
)  # fmt: skip
MUSEUM = Domain(
    ("museum", "name", "institution"), make.venue, ("museum", "gallery", "collection"),
    (
        CITY, YEAR, FACILITY,
        Slot(("theme", "collection", "subject"), make.TOPICS,
             Fact(("is devoted to {v}", "shows {v}", "has a fine collection of {v}"), (),
                  ("of {v}", "devoted to {v}"))),
        Slot(("ticket", "admission", "entry fee"), make.money,
             Fact(("charges {v} for a ticket", "asks {v} at the door", "costs {v} to visit"), (),
                  ("with tickets at {v}",), ("For {v}",))),
        Slot(("closed on", "closing day"), make.DAYS, Fact(("is closed on {v}", "shuts its doors on {v}"))),
        Slot(("visitors", "visitors a year"), lambda rng: f"{make.number(rng, 2, 900)},000",
             Fact(("draws {v} visitors a year", "is seen by {v} people each year"), (), ("with {v} visitors a year",))),
        choice(("kids", "familyFriendly"), {
            "yes": Fact(("is fun for young visitors", "has plenty for the little ones"), (), mood=1),
            "no": Fact(("will bore the young", "has nothing for the little ones"), (), mood=-1),
        }),
    ),
    ("Visit", "See", "Go to"),
)  # fmt: skip
RECIPE = Domain(
    ("dish", "recipe", "name"), make.dish, ("dish", "recipe"),
    (
        Slot(("time", "cooking time", "prepTime"), lambda rng: f"{make.number(rng, 5, 120)} minutes",
             Fact(("takes {v}", "is ready in {v}", "needs {v} in the kitchen"), (), ("ready in {v}",), ("In {v}",))),
        Slot(("serves", "portions"), lambda rng: make.number(rng, 1, 12),
             Fact(("feeds {v}", "makes {v} portions", "is enough for {v}"), (), ("for {v}",))),
        Slot(("main ingredient", "made with", "base"), make.INGREDIENTS,
             Fact(("is made with {v}", "calls for {v}", "is built on {v}"), (), ("with {v}", "made from {v}"))),
        Slot(("calories", "energy"), lambda rng: f"{make.number(rng, 80, 950)} calories",
             Fact(("has {v}", "comes to {v}"), (), ("of {v}", "with {v}"))),
        choice(("difficulty", "level"), {
            "easy": Fact(("is easy to make", "can hardly go wrong"), ("easy", "simple"), mood=1),
            "medium": Fact(("takes some practice", "asks for a little skill"), ()),
            "hard": Fact(("is hard to make", "is only for good cooks"), ("difficult",), mood=-1),
        }),
        choice(("vegetarian", "meatFree"), {
            "yes": Fact(("contains no meat", "suits vegetarians"), ("meatless",)),
            "no": Fact(("contains meat", "is not for vegetarians"), ()),
        }),
    ),
    ("Cook", "Make", "Try"),
)  # fmt: skip
BOOK = Domain(
    ("title", "book"), make.title, ("book", "novel", "volume"),
    (
        Slot(("author", "written by", "writer"), make.person,
             Fact(("was written by {v}", "is the work of {v}", "made {v} famous"), (), ("by {v}",))),
        Slot(("pages", "page count"), lambda rng: make.number(rng, 60, 990),
             Fact(("has {v} pages", "runs to {v} pages"), ("{v}-page",), ("of {v} pages",))),
        Slot(("published", "publication year"), make.year,
             Fact(("was published in {v}", "came out in {v}"), ("{v}",), ("from {v}",), ("In {v}",), order=1)),
        Slot(("publisher", "house"), make.company, Fact(("was published by {v}", "appeared with {v}"))),
        Slot(("topic", "about"), make.TOPICS,
             Fact(("deals with {v}", "is about {v}", "tells of {v}"), (), ("about {v}", "on {v}"))),
        LANGUAGE, PRICE,
    ),
    ("Read", "Buy", "Try"),
)  # fmt: skip
PERSON = Domain(
    ("person", "name", "full name"), make.person, make.JOBS,
    (
        Slot(("born in", "birthPlace", "birthplace"), make.place,
             Fact(("was born in {v}", "comes from {v}", "grew up in {v}"), (), ("from {v}",))),
        Slot(("birth year", "birthYear", "born"), make.year, Fact(("was born in {v}", "came into the world in {v}"))),
        Slot(("nationality", "country"), make.NATIONS, Fact(("is {v}", "holds a {v} passport"), ("{v}",), order=3)),
        Slot(("employer", "works for"), make.company,
             Fact(("works for {v}", "is employed by {v}", "joined {v}"), (), ("at {v}", "with {v}"))),
        Slot(("married to", "spouse"), make.person, Fact(("is married to {v}", "lives with {v}", "married {v}"))),
        Slot(("award", "prize"), make.award, Fact(("won {v}", "received {v}", "was given {v}"))),
        Slot(("likes", "hobby", "interest"), make.TOPICS, Fact(("likes {v}", "is fond of {v}", "cares about {v}"))),
    ),
    ("Meet", "Ask", "Write to"), "who",
)  # fmt: skip
CAR = Domain(
    ("model", "vehicle", "car"), make.product, ("car", "van", "lorry", "motorbike", "bicycle"),
    (
        Slot(("maker", "manufacturer", "brand"), make.company,
             Fact(("is built by {v}", "was made by {v}"), (), ("by {v}", "from {v}"))),
        Slot(("top speed", "maxSpeed"), lambda rng: f"{make.number(rng, 25, 320)} km/h",
             Fact(("reaches {v}", "has a top speed of {v}", "can go {v}"), (), ("with a top speed of {v}",))),
        Slot(("seats", "seatCount"), lambda rng: make.number(rng, 1, 9),
             Fact(("has {v} seats", "has room for {v} people", "carries {v}"), ("{v}-seat",), ("with {v} seats",))),
        PRICE, COLOUR, YEAR,
        choice(("fuel", "fuel type"), {
            "electric": Fact(("runs on electricity", "has an electric motor"), ("electric",), order=4),
            "petrol": Fact(("runs on petrol", "has a petrol engine"), ("petrol",), order=4),
            "none": Fact(("needs no fuel", "is moved by muscle alone"), ()),
        }),
    ),
    ("Buy", "Drive", "Consider"),
)  # fmt: skip
TRAIN = Domain(
    ("service", "train", "line"), make.product, ("train", "ferry", "bus", "flight", "tram"),
    (
        Slot(("from", "origin", "departs from"), make.place,
             Fact(("leaves from {v}", "starts in {v}", "departs from {v}"), (), ("from {v}",), ("From {v}",))),
        Slot(("to", "destination"), make.place,
             Fact(("goes to {v}", "ends in {v}", "takes you to {v}"), (), ("to {v}", "bound for {v}"))),
        Slot(("departure", "leaves at"), make.clock,
             Fact(("leaves at {v}", "departs at {v}", "sets off at {v}"), ("{v}",), (), ("At {v}",))),
        Slot(("platform", "gate"), lambda rng: make.number(rng, 1, 30),
             Fact(("waits at platform {v}", "leaves from platform {v}"), (), ("at platform {v}",))),
        Slot(("fare", "ticket price"), make.money,
             Fact(("costs {v}", "has a fare of {v}"), (), ("for {v}",), ("For {v}",))),
        choice(("delayed", "late"), {
            "yes": Fact(("is running late", "is not on time"), ("delayed",), mood=-1),
            "no": Fact(("is on time", "keeps to its timetable"), ("punctual",), mood=1),
        }),
        Slot(("runs on", "day"), make.DAYS, Fact(("runs on {v}", "operates every {v}"), (), (), ("On {v}",))),
    ),
    ("Take", "Board", "Catch"),
)  # fmt: skip
TEAM = Domain(
    ("club", "team", "name"), make.club, ("team", "club", "side"),
    (
        CITY, YEAR,
        Slot(("sport", "plays"), make.SPORTS, Fact(("plays {v}", "competes in {v}"), ("{v}",), (), order=4)),
        Slot(("coach", "manager"), make.person,
             Fact(("is coached by {v}", "is managed by {v}", "has {v} as its coach"), (), ("under {v}",))),
        Slot(("stadium", "ground"), make.venue, Fact(("plays its home games at {v}", "calls {v} home"))),
        Slot(("position", "rank"), lambda rng: make.number(rng, 1, 20),
             Fact(("is number {v} in the table", "ranks {v} in its league"))),
        choice(("form", "results"), {
            "strong": Fact(("is winning at will", "has had a splendid season"), ("strong",), mood=1),
            "weak": Fact(("keeps losing", "has had a dreadful season"), ("struggling",), mood=-1),
        }),
    ),
    ("Watch", "Support", "Follow"),
)  # fmt: skip
HOUSE = Domain(
    ("address", "property", "house"), make.address, ("house", "flat", "cottage", "villa"),
    (
        CITY, PRICE, YEAR,
        Slot(("bedrooms", "beds"), lambda rng: make.number(rng, 1, 9),
             Fact(("has {v} bedrooms", "offers {v} bedrooms"), ("{v}-bedroom",), ("with {v} bedrooms",))),
        Slot(("area", "floor area"), lambda rng: f"{make.number(rng, 20, 400)} square metres",
             Fact(("measures {v}", "covers {v}"), (), ("of {v}",))),
        Slot(("beside", "next to"), make.venue, Fact(("adjoins {v}", "borders {v}"), (), ("beside {v}",))),
        choice(("garden", "hasGarden"), {
            "yes": Fact(("has a garden", "comes with a lawn"), (), ("with a garden",), mood=1),
            "no": Fact(("has no garden", "lacks any green space"), (), ("without a garden",), mood=-1),
        }),
        choice(("setting", "surroundings"), {
            "quiet": Fact(("lies in a quiet street", "enjoys perfect calm"), ("quiet", "peaceful"), mood=1),
            "busy": Fact(("lies in a busy street", "hears traffic all day"), ("noisy",), mood=-1),
        }),
    ),
    ("Rent", "Buy", "See"),
)  # fmt: skip
ANIMAL = Domain(
    ("animal", "species", "name"), make.creature, ("animal", "creature", "species"),
    (
        Slot(("habitat", "lives in"), make.HABITATS, Fact(("lives in {v}", "makes its home in {v}"), (), ("of {v}",))),
        Slot(("diet", "eats", "food"), make.INGREDIENTS, Fact(("eats {v}", "feeds on {v}", "lives on {v}"))),
        Slot(("lifespan", "lives for"), lambda rng: f"{make.number(rng, 2, 80)} years",
             Fact(("lives for {v}", "can reach an age of {v}"))),
        WEIGHT, COLOUR,
        choice(("endangered", "threatened"), {
            "yes": Fact(("is in danger of dying out", "has become very scarce"), ("rare",), mood=-1),
            "no": Fact(("is in no danger", "thrives almost anywhere"), ("common",), mood=1),
        }),
    ),
    ("Look for", "Watch", "Photograph"),
)  # fmt: skip
ALBUM = Domain(
    ("album", "song", "title"), make.title, ("album", "song", "record"),
    (
        Slot(("artist", "singer", "performer"), make.person,
             Fact(("was recorded by {v}", "is sung by {v}", "brought {v} fame"), (), BY)),
        Slot(("label", "record label"), make.company, Fact(("appeared on {v}", "was released by {v}"))),
        Slot(("style", "genre"), make.MUSIC, Fact(("is {v} at heart", "is a fine example of {v}"), ("{v}",), order=4)),
        Slot(("released", "year"), make.year, Fact(("came out in {v}", "is from {v}"), ("{v}",), (), ("In {v}",))),
        Slot(("tracks", "number of tracks"), lambda rng: make.number(rng, 1, 24),
             Fact(("has {v} tracks", "contains {v} tracks"), ("{v}-track",), ("with {v} tracks",))),
        LANGUAGE,
    ),
    ("Play", "Listen to", "Hear"),
)  # fmt: skip

DOMAINS = (HOTEL, FILM, LAPTOP, MUSEUM, RECIPE, BOOK, PERSON, CAR, TRAIN, TEAM, HOUSE, ANIMAL, ALBUM)
