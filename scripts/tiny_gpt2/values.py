"""Slot values for the pretraining text: word lists, and makers of names that no list could hold.

Most names are invented for each text again, so that a model must copy them from its input to say them.
"""

from __future__ import annotations

import random

COLOURS = ("black", "white", "silver", "dark green", "light blue", "red", "grey", "orange", "brown", "yellow", "gold")
NATIONS = (
    "Spanish",
    "German",
    "Greek",
    "Turkish",
    "Polish",
    "Dutch",
    "Swedish",
    "Korean",
    "Brazilian",
    "Irish",
    "Welsh",
    "Russian",
    "Mexican",
    "Thai",
    "Danish",
    "Finnish",
    "Kenyan",
    "Canadian",
    "Portuguese",
    "Vietnamese",
    "American",
    "Scottish",
    "Austrian",
    "Egyptian",
    "Australian",
    "English",
    "French",
    "Italian",
    "Indian",
    "Chinese",
    "Japanese",
)
FACILITIES = ("pool", "restaurant", "coffee shop", "pub", "gym", "library", "playground")
GENRES = ("comedy", "drama", "horror", "adventure", "crime", "science fiction", "war", "fantasy", "romance")
MUSIC = ("jazz", "folk", "soul", "rock", "opera", "country", "blues", "choral music", "dance music", "pop")
SPORTS = ("football", "hockey", "cricket", "rugby", "basketball", "tennis", "handball", "chess", "rowing")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "public holidays")
TOPICS = (
    "old maps", "railways", "modern art", "the sea", "garden flowers", "city life", "family history", "toy trains",
    "ancient coins", "the stars", "early computers", "musical instruments", "folk tales", "clocks", "bridges",
    "mountain climbing", "the wine trade", "sailing ships", "children and their games", "river fishing", "birds",
    "the history of tea", "coffee growing", "good manners", "wild horses", "local customs", "money", "weather",
)  # fmt: skip
INGREDIENTS = (
    "rice", "beans", "fresh herbs", "lamb", "salmon", "lentils", "potatoes", "goat cheese", "leaves and roots",
    "small fish", "insects", "wild mushrooms", "eggs", "oats", "pumpkin", "walnuts", "tomatoes", "seeds", "honey",
)  # fmt: skip
HABITATS = ("dense forest", "high mountains", "dry grassland", "warm lakes", "river banks", "the far north", "deserts")
JOBS = (
    "painter", "scientist", "teacher", "singer", "engineer", "politician", "nurse", "pilot", "lawyer", "writer",
    "footballer", "judge", "actor", "gardener", "dentist", "photographer", "historian", "student",
)  # fmt: skip
_ADJECTIVES = (
    "Silver", "Green", "Old", "Royal", "Grand", "Little", "Hidden", "Bright", "Northern", "Sleepy", "Wild", "Golden",
    "Lost", "Secret", "Broken", "First", "Last", "Red", "Blue", "White", "Black", "Crystal", "Happy", "Lonely", "Quick",
    "Stone", "Iron", "Summer", "Winter", "Morning", "Evening", "Twin", "Lucky", "Merry", "Proud", "Gentle",
)  # fmt: skip
_NOUNS = (
    "Harbour", "Crown", "Bridge", "Garden", "Tower", "Mill", "Lion", "Swan", "Rose", "Oak", "Star", "Moon", "River",
    "Castle", "Court", "House", "Ship", "Bell", "Gate", "Hill", "Fox", "Eagle", "Horse", "Lake", "Wheel", "Key",
    "Mirror", "Letter", "Island", "Forest", "Storm", "Table", "Window", "Road", "Clock", "Feather", "Market",
    "Station", "Park", "Corner", "Lodge", "Palace", "Orchard", "Cellar", "Anchor", "Ring", "Dragon", "Heart",
)  # fmt: skip
_FIRST_NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Ines", "Jack", "Karin", "Louis", "Maria",
    "Noah", "Olga", "Peter", "Ruth", "Sam", "Tara", "Victor", "Wendy", "Yusuf", "Zoé", "René", "Amélie", "Tom",
)  # fmt: skip
_VENUES = (
    "Hall", "Arms", "Cinema", "Theatre", "School", "Church", "Library", "Bar", "Gallery", "Centre", "Inn", "Square",
    "Arcade", "Works", "Gardens", "Hotel", "Market", "College",
)  # fmt: skip
_STARTS = ("b", "br", "c", "ch", "d", "dr", "f", "g", "gl", "h", "j", "k", "l", "m", "n", "p", "pr", "r", "s", "st",
           "t", "tr", "v", "w", "z", "")  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "a", "e", "o", "ai", "ea", "ou", "é", "ü")
_ENDS = ("", "", "n", "r", "l", "s", "t", "m", "nd", "rt", "ck", "ll", "x", "ng")
_COMPANY = ("Ltd", "and Sons", "Group", "Brothers", "Press", "Industries", "Partners", "Works", "Motors", "Union")
_DISHES = ("stew", "soup", "pie", "cake", "salad", "curry", "tart", "bake", "bread", "dumplings", "noodles", "pudding")
_BEASTS = ("owl", "frog", "deer", "beetle", "whale", "lizard", "goose", "bear", "bat", "otter", "heron", "hare")
_AWARDS = ("Prize", "Medal", "Award", "Cup", "Fellowship")
_STREETS = ("Street", "Road", "Lane", "Avenue", "Square", "Hill", "Way")


def word(rng: random.Random) -> str:
    """An invented capitalised word of one to three syllables."""
    count = rng.choice((1, 2, 2, 2, 3))
    syllables = [rng.choice(_STARTS) + rng.choice(_VOWELS) for _ in range(count)]
    return ("".join(syllables) + rng.choice(_ENDS)).capitalize()


def _any_word(rng: random.Random) -> str:
    return word(rng) if rng.random() < 0.45 else rng.choice((*_ADJECTIVES, *_NOUNS))


def title(rng: random.Random) -> str:
    """A title of a book, film or record."""
    form = rng.randrange(7)
    adjective, noun = rng.choice(_ADJECTIVES), rng.choice(_NOUNS)
    return (
        f"The {adjective} {noun}",
        f"{noun} of {word(rng)}",
        f"{_any_word(rng)} and {_any_word(rng)}",
        f"The {noun} in the {rng.choice(_NOUNS)}",
        word(rng),
        f"{adjective} {noun}",
        f"{rng.choice(_FIRST_NAMES)}'s {noun}",
    )[form]


def venue(rng: random.Random) -> str:
    """A name of a house that is open to the public."""
    form = rng.randrange(7)
    adjective, noun = rng.choice(_ADJECTIVES), rng.choice(_NOUNS)
    return (
        f"The {adjective} {noun}",
        f"The {_any_word(rng)}",
        f"{_any_word(rng)} {rng.choice(_VENUES)}",
        f"The {noun} and {rng.choice(_NOUNS)}",
        f"{_any_word(rng)} {noun}",
        f"{word(rng)} {_any_word(rng)} {rng.choice(_VENUES)}",
        word(rng),
    )[form]


def place(rng: random.Random) -> str:
    """A name of a town."""
    ending = rng.choice(("", "", "", " Bay", "ton", "ford", "bridge", "ville", " Hill", " City"))
    return rng.choice(("", "", "", "", "North ", "Saint ", "New ", "Port ")) + word(rng) + ending


def person(rng: random.Random) -> str:
    """A full name."""
    first = rng.choice(_FIRST_NAMES) if rng.random() < 0.7 else word(rng)
    return f"{first} {word(rng)}"


def company(rng: random.Random) -> str:
    """A name of a firm."""
    return f"{_any_word(rng)} {rng.choice(_COMPANY)}" if rng.random() < 0.8 else word(rng)


def club(rng: random.Random) -> str:
    """A name of a sports club."""
    return f"{word(rng)} {rng.choice(('United', 'City', 'Rovers', *_NOUNS))}" + rng.choice(("", "", "s"))


def product(rng: random.Random) -> str:
    """A name of a machine, often with a number."""
    letters = "".join(rng.choice("ABCDEGKLMNPRSTVXZ") for _ in range(rng.choice((1, 2))))
    digits = rng.randrange(1, 1000)
    return f"{_any_word(rng)} {rng.choice((letters, f'{letters}{digits}', str(digits)))}"


def dish(rng: random.Random) -> str:
    """A name of something to cook."""
    return f"{_any_word(rng)} {rng.choice(_DISHES)}"


def creature(rng: random.Random) -> str:
    """A name of an animal, with the article."""
    return f"the {_any_word(rng).lower()} {rng.choice(_BEASTS)}"


def address(rng: random.Random) -> str:
    """A house number and a street."""
    return f"{rng.randrange(1, 200)} {_any_word(rng)} {rng.choice(_STREETS)}"


def award(rng: random.Random) -> str:
    """A name of an honour, with the article."""
    return f"the {_any_word(rng)} {rng.choice(_AWARDS)}"


def money(rng: random.Random) -> str:
    """A sum, a bound or a span of money."""
    sign, low = rng.choice("££$€"), rng.choice((rng.randrange(2, 60), rng.randrange(10, 100) * 10))
    exact = f"{sign}{low}"
    return rng.choice((exact, exact, f"less than {exact}", f"more than {exact}", f"{exact}-{low + 5}"))


def number(rng: random.Random, low: int, high: int) -> str:
    """A number from ``low`` to ``high``, both included."""
    return str(rng.randint(low, high))


def year(rng: random.Random) -> str:
    """A year from 1650 to 2024."""
    return str(rng.randint(1650, 2024))


def clock(rng: random.Random) -> str:
    """A time of day."""
    return f"{rng.randrange(24)}:{rng.randrange(0, 60, 5):02d}"
