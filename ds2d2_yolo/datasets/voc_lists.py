"""Split lists of Pascal VOC's layout, and the images that their lines mean."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from ds2d2_yolo.datasets.coco_images import MISSING, Claims, Tails, agreement, fittest, parts
from ds2d2_yolo.datasets.source import IMAGES, UNREAD, File, Source
from ds2d2_yolo.datasets.splits import possible_splits, split_of_folders, without_column
from ds2d2_yolo.datasets.voc_pairs import KIND, home_of, place, place_of
from ds2d2_yolo.errors import UserError

_LISTS = ("train", "val", "trainval", "test")
_OF_OTHER_TASKS = ("segmentation", "layout", "action")  # VOC's own, in ImageSets beside Main


@dataclass
class SplitList:
    """A list.

    Attributes:
        file: Where it was read.
        kind: train, val, trainval or test.
        root: The folder of the images that it lists, as far as that can be told.
        lines: The folders and the name without suffix in each line.
        outside: Whether it lies outside ``ImageSets``.
    """

    file: File
    kind: str
    root: PurePosixPath
    lines: list[tuple[str, ...]]
    outside: bool = False


def read_lists(source: Source, images: list[File], problems: dict[str, list[str]]) -> list[SplitList]:
    """Return the lists in ``ImageSets/Main`` folders, else in ``ImageSets`` itself, else wherever they are.

    Raises:
        UserError: One cannot be read.
    """
    stems = {image.path.stem for image in images}
    named = [f for f in source.files if f.path.suffix.lower() == ".txt" and f.path.stem.lower() in _LISTS]
    for depth, folders in ((2, ["imagesets", "main"]), (1, ["imagesets"])):
        found = [f for f in named if [part.lower() for part in f.path.parts[:-1]][-depth:] == folders]
        if found:
            return [SplitList(f, f.path.stem.lower(), f.path.parents[depth], _lines(f, stems)) for f in found]
    return _elsewhere([f for f in named if not f.under(*_OF_OTHER_TASKS)], images, stems, problems)


def _elsewhere(named: list[File], images: list[File], stems: Collection[str], problems: dict) -> list[SplitList]:
    """The lists of each folder that holds images, the uppermost below it; a text counts if it names an image.

    None where folders tell the splits, or where two of those lists contradict each other, as of cross-validation.
    """
    holders = {folder for image in images for folder in image.path.parents}
    by_root = defaultdict(list)
    for file in named:
        lines = _lines(file, stems)
        if any(line[-1] in stems for line in lines):
            root = next(folder for folder in file.path.parents if folder in holders)
            by_root[root].append(SplitList(file, file.path.stem.lower(), root, lines, outside=True))
        elif lines:  # labels/train.txt may be YOLO's label of train.jpg
            problems["called like a split list, names no image"].append(str(file.path))
    found, lower, first, differ = [], [], {}, False
    for lists in by_root.values():
        upper = min(len(one.file.path.parts) for one in lists)
        found += [one for one in lists if len(one.file.path.parts) == upper]
        lower += [str(one.file.path) for one in lists if len(one.file.path.parts) > upper]
    for one in found:
        other = first.setdefault((one.root, one.kind), one)
        differ |= other.file.path != one.file.path and set(other.lines) != set(one.lines)
    if differ or any(split_of_folders(image.folders) for image in images):
        passed_over = [str(one.file.path) for lists in by_root.values() for one in lists]
        problems["split list outside ImageSets/Main (passed over)"] += passed_over
        return []
    problems["split list passed over for those above it"] += lower
    return found


def _lines(file: File, stems: Collection[str]) -> list[tuple[str, ...]]:
    """The folders and the name without suffix in each line, and without VOC's column but where that is in a stem."""
    try:
        text = file.read().decode("utf-8-sig", "surrogateescape")  # as names of files are decoded
    except OSError as error:
        raise UserError(f"split list '{file}' cannot be read: {error}") from error
    forms = ((_named(line.strip()), _named(without_column(line))) for line in text.splitlines())
    return [whole if whole[-1] in stems else bare for whole, bare in forms if whole]


def _named(line: str) -> tuple[str, ...]:
    *folders, name = parts(line) or ("",)
    path = PurePosixPath(name)
    name = path.stem if path.suffix.lower() in {*IMAGES, *UNREAD, ".xml"} else name
    return (*folders, name) if name else ()


def listed(lists: list[SplitList], images: list[File], problems: dict[str, list[str]]) -> list[tuple[str, File]]:
    """Return split and image, as the lists say."""
    meanings, claims, chosen, doubted = _Meanings(images, {one.root for one in lists}), Claims(), {}, set()
    found = [[(line, *meanings.of(line, one)) for line in one.lines] for one in lists]
    for _, likes, _ in (line for lines in found for line in lines):
        claims.add(likes.items())
    meant = defaultdict(lambda: defaultdict(list))
    for one, lines in zip(lists, found, strict=True):
        for line, likes, reason in lines:
            own = [image for image, like in likes.items() if not claims.is_anothers(image, like)]
            meant[one.root][one.kind] += own or [(reason or MISSING, "/".join(line))]
            if not own:
                doubted.add(line[-1])
    for kinds in meant.values():
        for split, ones in _three(kinds).items():
            for one in ones:
                if isinstance(one, File):
                    chosen[split, one] = None
                else:
                    problems[one[0]].append(f"{split}: {one[1]}")
    placed = {image for _, image in chosen}
    rest = [image for image in images if image not in placed and image.path.stem not in doubted]
    chosen |= dict.fromkeys(("train", image) for image in _for_training(lists, rest))
    times = Counter(image for _, image in chosen)
    problems["in two split lists"] += [str(image.path) for image, count in times.items() if count > 1]
    problems["in no split list"] += [str(image.path) for image in images if image not in times]
    return list(chosen)


def _for_training(lists: list[SplitList], rest: list[File]) -> list[File]:
    """Those of the images in no list that are beside lists outside ``ImageSets`` of which none says what to train on.

    A test.txt alone takes its images out; what to do with all others it leaves open.
    """
    kinds = defaultdict(set)
    for one in lists:
        kinds[one.root].add(one.kind)
    trained = {root for root, own in kinds.items() if own & {"train", "trainval"}}

    def open_to(image: File) -> bool:
        root = next((folder for folder in image.path.parents if folder in kinds), None)
        return root not in trained if root else not trained

    return [image for image in rest if open_to(image)] if all(one.outside for one in lists) else []


class _Meanings:
    """What lines mean among images."""

    def __init__(self, images: list[File], roots: Collection[PurePosixPath]):
        self._roots, self._tails, self._known = roots, Tails(images, _forms), {}
        places = {own for image in images for own in (place_of(image), home_of(image))}
        self._there = {own[i:] for own in places for i in range(len(own))}

    def of(self, line: tuple[str, ...], one: SplitList) -> tuple[dict[File, tuple[int, int, bool]], str]:
        """Return the images that a line means, each with how like it is, or why there is none.

        Of those of its name the ones that share most folders with it, of these those in folders named for images, of
        these in folders of the list's splits. Folders need not be there where they leave no doubt.
        """
        wanted = (*place(line[:-1]), line[-1])
        for number, alike in self._tails.longest_first(wanted):
            if wanted[-number - 1 : -1] in self._there and number < len(wanted):
                break  # a folder that is there, without such an image
            if len(alike) == 1:
                found = self._chosen(alike, line, wanted, one)
            else:  # the same for all lines that end so, which may be many
                end = next(i for i in range(len(line)) if len(place(line[i:-1])) < number)
                key = line[end:], number < len(wanted), one.root, one.kind
                if key not in self._known:
                    self._known[key] = self._chosen(alike, line, wanted, one)
                found = self._known[key]
            if found:
                return found
        return {}, MISSING

    def _near(self, images: list[File], root: PurePosixPath) -> list[File]:
        """Those below the folder that the list lies in."""
        above = root.parts
        near = [image for image in images if image.path.parts[: len(above)] == above]
        # Lists may have been unpacked beside their images, not above them
        return near or [image for image in images if self._roots.isdisjoint(image.path.parents)]

    def _chosen(self, images: list[File], line: tuple, wanted: tuple, one: SplitList) -> tuple[dict, str] | None:
        """As ``of``, among images that share equally many folders with it; None where a list means none of them."""
        near = self._near(images, one.root)
        if not near:
            return None

        def tail(image: File) -> tuple[int, int]:
            return max(agreement(line, (*f, image.path.stem))[:2] for f in (image.path.parts[:-1], image.folders))

        def fit(image: File) -> tuple:
            named = any(KIND.fullmatch(folder.lower()) for folder in image.path.parts[:-1])
            return tail(image), named, split_of_folders(image.folders) in possible_splits([one.kind])

        found = fittest(near, fit) if len(near) > 1 else near
        likes = {image: max(agreement(wanted, form) for form in _forms(image)) for image in found}
        alone = max(tail(found[0])[0], likes[found[0]][0]) == 1
        if len(line) > 1 and alone and len({image.path.parent for image in found}) > 1:
            return {}, "more than one image of this name"
        return likes, ""


def _forms(image: File) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (*place_of(image), image.path.stem), (*home_of(image), image.path.stem)


def _three(kinds: Mapping[str, list]) -> dict[str, list]:
    """Lists of train, val and test; of trainval comes what one of the two lacks."""
    train, val, both = kinds.get("train"), kinds.get("val"), kinds.get("trainval", [])
    if train is None:
        seen = set(val or ())
        train = [one for one in both if one not in seen]
    elif val is None:
        seen = set(train)
        val = [one for one in both if one not in seen]
    return {"train": train, "val": val or [], "test": kinds.get("test", [])}
