"""The microworld's places and what the notes say about them.

An entity is a kind of place in a town ("the mill of Orva"). What is true of it changes from year to year and stands in
the notes, the system message of every prompt: a model has to read. No two attributes share a value, so a value word
names its attribute.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from rlhf_ray.config.world import NUM_TOWNS, WorldConfig
from rlhf_ray.data.task import Split


@dataclass(frozen=True)
class Attribute:
    """One thing that the notes can say. ``{v}`` stands for the value and ``{n}`` for "the mill"."""

    name: str
    values: tuple[str, ...]
    nouns: tuple[str, ...]  # words that speak about this attribute and no other
    note: str
    asked: tuple[str, ...]  # as the object of a question
    sentence: str  # as a short answer
    statement: str  # as a claim about a named place
    phrase: str  # after "The mill"


ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute(
        name="door",
        values=("red", "blue", "green", "white", "black", "yellow"),
        nouns=("door", "doors", "colour"),
        note="{v} door",
        asked=("the door colour", "the colour of the door"),
        sentence="The door is {v}.",
        statement="the door of {n} is {v}",
        phrase="has a {v} door",
    ),
    Attribute(
        name="roof",
        values=("slate", "thatch", "tile", "copper", "turf", "cedar"),
        nouns=("roof", "roofs", "material"),
        note="{v} roof",
        asked=("the roof material", "the material of the roof"),
        sentence="The roof is {v}.",
        statement="the roof of {n} is {v}",
        phrase="has a {v} roof",
    ),
    Attribute(
        name="keeper",
        values=("Mara", "Tobin", "Edda", "Joss", "Perrin", "Otto"),
        nouns=("keeper", "keepers", "name"),
        note="keeper {v}",
        asked=("the keeper's name", "the name of the keeper"),
        sentence="The keeper is {v}.",
        statement="the keeper of {n} is {v}",
        phrase="has {v} as keeper",
    ),
    Attribute(
        name="goods",
        values=("honey", "wool", "candles", "bread", "rope", "salt"),
        nouns=("goods", "sells", "sell", "sale"),
        note="sells {v}",
        asked=("the goods on sale", "the goods"),
        sentence="It sells {v}.",
        statement="{n} sells {v}",
        phrase="sells {v}",
    ),
)
ATTRIBUTE_OF: Mapping[str, Attribute] = {attribute.name: attribute for attribute in ATTRIBUTES}
PLACES = ("mill", "inn", "tower", "forge", "chapel", "barn", "dairy", "library", "bakery", "barge", "wagon", "tent")
TOWNS = (
    *("Orva", "Telm", "Brask", "Ludo", "Fenwick", "Hollin", "Marrow", "Quill", "Sarn", "Tovey", "Ulm", "Vesper"),
    *("Wick", "Yarrow", "Zell", "Arden", "Birk", "Corl", "Dunmere", "Elsin", "Farrow", "Gant", "Hask", "Ister"),
    *("Jory", "Kell", "Lorne", "Mosk", "Nettle", "Oster", "Pell", "Rusk", "Selby", "Tarn", "Umber", "Vane"),
    *("Wold", "Yeld", "Zorin", "Ashby", "Bram", "Calder", "Drum", "Eskar", "Fallow", "Grint", "Harl", "Ivel"),
)
assert len(TOWNS) == NUM_TOWNS


@dataclass(frozen=True)
class Entity:
    place: str
    town: str

    @property
    def name(self) -> str:
        return f"the {self.place} of {self.town}"

    @property
    def short(self) -> str:
        return f"the {self.place}"


@dataclass(frozen=True)
class Notes:
    """What is known of one entity in one year: attribute name -> value, in the order in which the notes list them."""

    entity: Entity
    year: int
    values: Mapping[str, str]

    @property
    def text(self) -> str:
        listed = ", ".join(ATTRIBUTE_OF[name].note.format(v=value) for name, value in self.values.items())
        return f"Year {self.year}, {self.entity.name}: {listed}."

    def excerpt(self, names: list[str]) -> Notes:
        """The same notes with these attributes only, in this order."""
        return Notes(self.entity, self.year, {name: self.values[name] for name in names})


def split_entities(config: WorldConfig) -> dict[Split, list[Entity]]:
    """Name the world's entities and set whole entities aside: no town is on both sides."""
    draw = random.Random(f"world/{config.seed}/entities")
    towns = draw.sample(TOWNS, config.num_entities)
    entities = [Entity(place=PLACES[index % len(PLACES)], town=town) for index, town in enumerate(towns)]
    draw.shuffle(entities)
    heldout = config.num_heldout_entities
    return {"heldout": entities[:heldout], "train": entities[heldout:]}


def yearly_notes(config: WorldConfig, entities: list[Entity]) -> list[Notes]:
    """Everything that is true of ``entities``, a page for each entity and year."""
    pages = []
    for entity in entities:
        for year in range(1, config.num_years + 1):
            draw = random.Random(f"world/{config.seed}/{entity.town}/{year}")
            values = {attribute.name: draw.choice(attribute.values) for attribute in ATTRIBUTES}
            pages.append(Notes(entity, year, values))
    return pages
