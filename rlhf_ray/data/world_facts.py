"""The microworld's places and what is true of them.

An entity is a kind of place in a town ("the mill of Orva"); each attribute of it has one value. No two attributes share
a value, so a value word names its attribute. Facts stand nowhere but in demonstrations: a model has to learn them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from rlhf_ray.config.world import NUM_TOWNS, WorldConfig
from rlhf_ray.data.task import Split


@dataclass(frozen=True)
class Attribute:
    """One thing that is true of every place. ``{v}`` stands for the value and ``{n}`` for the entity's name."""

    name: str
    values: tuple[str, ...]
    nouns: tuple[str, ...]  # words that speak about this attribute and no other
    asked: tuple[str, ...]  # as the object of a question
    sentence: str  # as a short answer
    statement: str  # as a claim about a named place
    phrase: str  # after "The mill"


ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute(
        name="door",
        values=("red", "blue", "green", "white", "black", "yellow"),
        nouns=("door", "doors", "colour"),
        asked=("the door colour", "the colour of the door"),
        sentence="The door is {v}.",
        statement="the door of {n} is {v}",
        phrase="has a {v} door",
    ),
    Attribute(
        name="roof",
        values=("slate", "thatch", "tile", "copper", "turf", "cedar"),
        nouns=("roof", "roofs", "material"),
        asked=("the roof material", "the material of the roof"),
        sentence="The roof is {v}.",
        statement="the roof of {n} is {v}",
        phrase="has a {v} roof",
    ),
    Attribute(
        name="keeper",
        values=("Mara", "Tobin", "Edda", "Joss", "Perrin", "Otto"),
        nouns=("keeper", "keepers", "name"),
        asked=("the keeper's name", "the name of the keeper"),
        sentence="The keeper is {v}.",
        statement="the keeper of {n} is {v}",
        phrase="has {v} as keeper",
    ),
    Attribute(
        name="goods",
        values=("honey", "wool", "candles", "bread", "rope", "salt"),
        nouns=("goods", "sells", "sell", "sale"),
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
    values: Mapping[str, str]  # attribute name -> what is true

    @property
    def name(self) -> str:
        return f"the {self.place} of {self.town}"


def split_entities(config: WorldConfig) -> dict[Split, list[Entity]]:
    """Make the world and set whole entities aside: no town is on both sides."""
    draw = random.Random(f"world/{config.seed}/entities")
    entities = [
        Entity(
            place=PLACES[index % len(PLACES)],
            town=town,
            values={attribute.name: draw.choice(attribute.values) for attribute in ATTRIBUTES},
        )
        for index, town in enumerate(draw.sample(TOWNS, config.num_entities))
    ]
    draw.shuffle(entities)
    heldout = config.num_heldout_entities
    return {"heldout": entities[:heldout], "train": entities[heldout:]}
