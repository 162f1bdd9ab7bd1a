"""The words of the decoder's tasks, by category, and the one tokenizer that has all of them.

A model copies a word by its category: "the word after <sep> that is a colour", for example. Each
category is used for one purpose in each task.
"""

from __future__ import annotations

from ..words import Words

# Restaurants (mini-e2e)
PLACES = ("alimentum", "aromi", "cocum", "cotto", "giraffe", "strada", "wildwood", "zizzi")
FOODS = ("chinese", "english", "french", "indian", "italian", "japanese")
PRICES = ("cheap", "fair", "costly", "fancy")
AREAS = ("riverside", "centre", "north", "south")
NEAR = ("museum", "station", "park", "bridge", "market", "theatre")
RATINGS = ("poor", "average", "good", "superb")

# A table of players (mini-sql)
PEOPLE = ("amy", "ben", "cleo", "dan", "eva", "finn", "gina", "hugo")
TEAMS = ("reds", "blues", "greens", "golds")
CITIES = ("lima", "oslo", "paris", "rome")
GOALS = ("1", "2", "3", "4", "5", "6", "7", "8", "9")
AGES = ("20", "21", "22", "23", "24", "25", "26", "27", "28", "29")
COLUMNS = {"name": PEOPLE, "team": TEAMS, "city": CITIES, "goals": GOALS, "age": AGES}
TOTALS = ("count", "min", "max", "sum", "avg")

# Animals (mini-mnli): a general word, and the words that it includes
COLOURS = ("black", "white", "brown", "grey")
ANIMALS = {"pet": ("cat", "dog", "rabbit"), "bird": ("owl", "crow", "goose")}
ACTIONS = {"rests": ("sleeps", "sits", "lies"), "moves": ("runs", "jumps", "climbs")}
ROOMS = {"inside": ("kitchen", "cellar", "barn"), "outside": ("garden", "field", "forest")}

# Plans of two people (mini-samsum)
HOBBIES = ("swim", "cook", "hike", "paint", "sing", "skate", "dance", "bowl")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

OTHERS = (
    ". , : ; ? ! ( ) = > < a the in on at of to is it and or no not yes "
    "plain guide ad chat serves food prices near guests call you find place its rating come by i "
    "like go look for people say "
    "visitors rate chefs as budget location beside whose "
    "table query which how many highest lowest total mean with above below filter over under then "
    "take select from where players "
    "compare judge colour animal action room same wider other narrower "
    "entailment neutral contradiction "
    "talk title shall we better fine sorry have plan "
    "will instead wants but must meet"
)

DECODER = Words([
    *PLACES, *FOODS, *PRICES, *AREAS, *NEAR, *RATINGS, *PEOPLE, *TEAMS, *CITIES, *GOALS, *AGES,
    *COLUMNS, *TOTALS, *COLOURS, *HOBBIES, *DAYS,
    *(word for group in (ANIMALS, ACTIONS, ROOMS) for kind, some in group.items()
      for word in (kind, *some)),
    *OTHERS.split(),
])
