"""The classes of the demo model: the table that maps emoji to labels.

A class has Unicode subcategories (by their names in `emoji-datasource`), single emoji that are added by short name, and
emoji of the subcategories that are excluded by short name because they look like something else. The position in the
table is the label.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EmojiClass:
    """One class. `names` are the synonyms that a user may type; `mirror` says whether an image may be flipped."""

    names: str
    subcategories: tuple[str, ...] = ()
    members: str = ""
    without: str = ""
    mirror: bool = True

    def contains(self, subcategory: str, short_name: str) -> bool:
        """Return whether the emoji with this subcategory and short name belongs to the class."""
        listed = subcategory in self.subcategories and short_name not in self.without.split()
        return listed or short_name in self.members.split()


_FACES = (
    "smiling",
    "affection",
    "tongue",
    "hand",
    "neutral-skeptical",
    "sleepy",
    "unwell",
    "hat",
    "glasses",
    "concerned",
)
_HANDS = ("fingers-open", "fingers-partial", "single-finger", "fingers-closed")
_ANIMAL_FACES = (
    "monkey_face dog wolf fox_face raccoon cat lion_face tiger horse moose unicorn_face zebra_face cow pig boar mouse "
    "hamster rabbit bear polar_bear koala panda_face"
)

CLASSES = (
    EmojiClass(
        "smiley, yellow face",
        tuple(f"face-{kind}" for kind in _FACES),
        members="triumph",
        without="face_in_clouds dotted_line_face hot_face cold_face nauseated_face exploding_head melting_face",
    ),
    EmojiClass("animal face", ("cat-face", "monkey-face"), members=f"{_ANIMAL_FACES} frog dragon_face"),
    EmojiClass(
        "animal, mammal", ("animal-mammal",), members="sauropod t-rex", without=f"{_ANIMAL_FACES} pig_nose feet bat"
    ),
    EmojiClass("bird", ("animal-bird",), without="feather wing"),
    EmojiClass("sea animal, fish", ("animal-marine",), without="shell coral oyster"),
    EmojiClass("flower", ("plant-flower",), without="white_flower rosette"),
    EmojiClass(
        "tree, plant",
        ("plant-other",),
        members="tanabata_tree",
        without="mushroom leafless_tree empty_nest nest_with_eggs maple_leaf fallen_leaf",
    ),
    EmojiClass(
        "fruit, vegetable",
        ("food-fruit", "food-vegetable"),
        without="coconut peanuts chestnut brown_mushroom leafy_green",
    ),
    EmojiClass("drink, glass", ("drink",), without="ice_cube baby_bottle teapot"),
    EmojiClass("heart", ("heart",), without="love_letter"),
    EmojiClass("hand", tuple(f"hand-{kind}" for kind in _HANDS), members="writing_hand clap open_hands raised_hands"),
    EmojiClass(
        "woman",
        members="woman red_haired_woman curly_haired_woman white_haired_woman blond-haired-woman older_woman girl",
    ),
    EmojiClass(
        "man", members="man bearded_person man_with_beard red_haired_man curly_haired_man white_haired_man bald_man boy"
    ),
    EmojiClass("professional, worker", ("person-role",)),
    EmojiClass("athlete, sport", ("person-sport",)),
    EmojiClass("couple, family", ("family",)),
    EmojiClass("clock", ("time",), without="hourglass hourglass_flowing_sand watch mantelpiece_clock", mirror=False),
    EmojiClass(
        "moon",
        members="new_moon waxing_crescent_moon first_quarter_moon moon full_moon waning_gibbous_moon last_quarter_moon "
        "waning_crescent_moon crescent_moon new_moon_with_face first_quarter_moon_with_face "
        "last_quarter_moon_with_face full_moon_with_face",
    ),
    EmojiClass(
        "weather, cloud",
        members="cloud partly_sunny thunder_cloud_and_rain mostly_sunny barely_sunny partly_sunny_rain rain_cloud "
        "snow_cloud lightning tornado face_in_clouds",
    ),
    EmojiClass("building, house", ("place-building", "place-religious"), without="bricks rock wood"),
    EmojiClass(
        "vehicle, car",
        ("transport-ground",),
        without="station tram monorail mountain_railway busstop motorway railway_track oil_drum fuelpump wheel "
        "rotating_light traffic_light vertical_traffic_light octagonal_sign construction roller_skate skateboard "
        "manual_wheelchair motorized_wheelchair bike scooter",
    ),
    EmojiClass(
        "ball", members="soccer baseball softball basketball volleyball football rugby_football 8ball mirror_ball yarn"
    ),
    EmojiClass("religious symbol, purple square", ("religion",), without="six_pointed_star", mirror=False),
    EmojiClass(
        "letter or number",
        ("keycap",),
        members="capital_abcd abcd 1234 symbols abc cool free id new ng ok up vs",
        mirror=False,
    ),
    EmojiClass("arrow", ("arrow",), without="back end on soon top", mirror=False),
    EmojiClass(
        "media button, orange square",
        ("av-symbol",),
        without="cinema low_brightness high_brightness signal_strength wireless vibration_mode mobile_phone_off",
        mirror=False,
    ),
    EmojiClass(
        "clothing, shirt",
        members="lab_coat safety_vest shirt jeans coat dress kimono sari one-piece_swimsuit shorts bikini "
        "womans_clothes martial_arts_uniform running_shirt_with_sash briefs",
    ),
    EmojiClass(
        "book", members="notebook_with_decorative_cover closed_book green_book blue_book orange_book notebook ledger"
    ),
    EmojiClass(
        "flag",
        ("country-flag", "subdivision-flag"),
        members="rainbow-flag transgender_flag pirate_flag waving_black_flag waving_white_flag",
        mirror=False,
    ),
)


def label_of(subcategory: str, short_name: str) -> int:
    """Return the label of an emoji, or -1 if it belongs to no class. Emoji of no class train only the VQVAE."""
    for label, row in enumerate(CLASSES):
        if row.contains(subcategory, short_name):
            return label
    return -1
