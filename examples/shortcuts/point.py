"""A point of the trade between seconds and quality: one combination of shortcuts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from runtime.errors import SettingsError
from runtime.limits import shown
from runtime.sampling import Sampling

EXACT, DRAFT, GUIDED, TINY = "exact", "draft-", "guided-", "tiny"
PART = re.compile(f"{DRAFT}(?P<draft>[0-9]{{1,9}})|{GUIDED}(?P<guided>[0-9]{{1,9}})|{TINY}")
DEPTHS = (1, 2, 3)  # how many of the last scales a default point shortens: they hold most of the tokens


@dataclass(frozen=True)
class Point:
    """A combination of shortcuts; without any it is the exact path.

    It is written as `draft-4+guided-4+tiny`: the large model draws 4 scales, 4 scales are guided, the tiny decoder.
    """

    draft_scales: int | None = None  # that the large model draws; None: all, without the refiner
    guidance_scales: int | None = None  # None: all
    tiny: bool = False

    @classmethod
    def parse(cls, text: str) -> Point:
        """Return the point that is written as `text`. Raises SettingsError."""
        found = cls()
        for part in text.split("+") if text != EXACT else ():
            match = PART.fullmatch(part)
            if match and match["draft"] and found.draft_scales is None:
                found = replace(found, draft_scales=int(match["draft"]))
            elif match and match["guided"] and found.guidance_scales is None:
                found = replace(found, guidance_scales=int(match["guided"]))
            elif part == TINY and not found.tiny:
                found = replace(found, tiny=True)
            else:
                expected = "exact, or draft-N, guided-M and tiny joined by +"
                raise SettingsError(f"--points: expected {expected}, found {shown(text)}")
        return found

    def __str__(self) -> str:
        parts = [f"{DRAFT}{self.draft_scales}"] if self.draft_scales is not None else []
        parts += [f"{GUIDED}{self.guidance_scales}"] if self.guidance_scales is not None else []
        parts += [TINY] if self.tiny else []
        return "+".join(parts) or EXACT

    def sampling(self, base: Sampling) -> Sampling:
        """Return the settings that the point is drawn with."""
        decoder = TINY if self.tiny else Sampling.decoder
        return replace(base, guidance_scales=self.guidance_scales, decoder=decoder)


def default_points(scales: int, refiner: bool, tiny: bool) -> list[Point]:
    """Return the exact path, each shortcut alone and combined, for a model of so many scales.

    Each shortens the last one, two or three scales: alone and all together at each of these, two of three at the last
    two scales. `draft-0`, the refiner alone, is the end that drafts start from.
    """
    kinds = [DRAFT] * refiner + [GUIDED] + [TINY] * tiny
    found = [Point()]
    for count in range(1, len(kinds) + 1):
        depths = DEPTHS if count in (1, len(kinds)) else DEPTHS[1:2]
        for chosen in combinations(kinds, count):
            found += _at_depths(chosen, [scales - depth for depth in depths if depth < scales])
    return list(dict.fromkeys(found + [Point(draft_scales=0)] * refiner))


def _at_depths(kinds: tuple[str, ...], counts: list[int]) -> Iterator[Point]:
    for count in counts:
        yield Point(count if DRAFT in kinds else None, count if GUIDED in kinds else None, TINY in kinds)
