"""GENERATED dialogues about restaurants, hotels and trains: a stand-in for recorded ones, which tests cannot ship.

Sentences come from a small grammar, and every value is copied from the text or implied by a fixed phrase. Nothing here
was said by a person, and no figure on these dialogues says how a method does on recorded ones. Names in ``HELD_OUT``
occur in the last dialogues only, so that a slot's value must be read and cannot be remembered.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

AREAS = ("north", "south", "east", "west", "center")
PRICES = ("cheap", "moderate", "expensive")
FOODS = ("italian", "chinese", "indian", "thai", "french", "spanish", "turkish", "korean")
HOTELS = ("acorn house", "bridge inn", "city lodge", "gate hotel", "hill view", "park lodge", "river inn", "star house")
TOWNS = ("cambridge", "ely", "london", "norwich", "leicester", "stevenage", "birmingham", "peterborough")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
HELD_OUT = {"food": ("greek", "polish"), "name": ("mill house", "tower inn"), "town": ("oxford", "bristol")}
SLOTS = (
    *("hotel-area", "hotel-name", "hotel-stars", "restaurant-area", "restaurant-food", "restaurant-price"),
    *("train-day", "train-departure", "train-destination"),
)
DOMAINS = ("restaurant", "hotel", "train")


def generated_dialogues(count: int = 1000, seed: int = 0, held_out: int = 200) -> list[dict[str, Any]]:
    """Return dialogues of two to four turns of a user; the last ``held_out`` ones use values that no other has.

    Each is a line of the format of :mod:`taskedge.training.data.dialogues`.
    """
    draw = random.Random(seed)
    return [_dialogue(number, draw, unseen=number >= count - held_out) for number in range(count)]


def write_dialogues(path: Path, dialogues: Sequence[dict[str, Any]]) -> Path:
    """Write dialogues as JSON lines."""
    path.write_text("".join(f"{json.dumps(dialogue)}\n" for dialogue in dialogues), encoding="utf-8")
    return path


def _dialogue(number: int, draw: random.Random, *, unseen: bool) -> dict[str, Any]:
    foods, names, towns = (
        (HELD_OUT[kind] if unseen else known) for kind, known in (("food", FOODS), ("name", HOTELS), ("town", TOWNS))
    )
    state: dict[str, str] = {}
    turns: list[dict[str, Any]] = []

    def say(text: str, reply: str, **changes: str) -> None:
        state.update({slot.replace("_", "-"): value for slot, value in changes.items()})
        turns.append({"role": "user", "content": text, "state": dict(sorted(state.items()))})
        turns.append({"role": "system", "content": reply})

    if draw.random() < 0.2:
        say("hello , i need some help .", "of course , what do you need ?")
    for domain in draw.sample(DOMAINS, draw.choice((1, 2))):
        if domain == "restaurant":
            food, area, price = draw.choice(foods), draw.choice(AREAS), draw.choice(PRICES)
            where = draw.choice((f"in the {area}", f"on the {area} side"))
            say(f"i want {food} food {where} .", "what price ?", restaurant_food=food, restaurant_area=area)
            say(draw.choice((f"{price} , please .", f"something {price} .")), "booked .", restaurant_price=price)
        elif domain == "hotel":
            name, area, stars = draw.choice(names), draw.choice(AREAS), draw.choice("345")
            if draw.random() < 0.5:
                say(f"is {name} free tonight ?", f"{name} is free .", hotel_name=name)
            else:
                say(f"find a hotel in the {area} with {stars} stars .", f"{name} ?", hotel_area=area, hotel_stars=stars)
                say("yes , that one .", "booked .", hotel_name=name)
        else:
            start, end = draw.sample(towns, 2)
            day = draw.choice(DAYS)
            say(f"a train from {start} to {end} .", "which day ?", train_departure=start, train_destination=end)
            say(draw.choice((f"on {day} .", f"{day} .")), "done .", train_day=day)
    return {"dialogue": f"generated-{number:04}", "turns": turns}
