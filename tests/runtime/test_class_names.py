"""Users type names: a name must find its class, and a wrong one must lead to the right one."""

from pathlib import Path

import pytest

from runtime import BundleError, SettingsError
from runtime.bundle.classes import CLASS_LISTS, ClassNames
from runtime.bundle.manifest import Manifest

IMAGENET = CLASS_LISTS / "imagenet.txt"


@pytest.fixture(scope="module")
def imagenet() -> ClassNames:
    lines = IMAGENET.read_text(encoding="utf-8").splitlines()
    return ClassNames(len(lines), tuple(tuple(line.split(", ")) for line in lines))


def test_imagenet_is_in_the_standard_order(imagenet: ClassNames) -> None:
    assert imagenet.num_classes == 1000
    landmarks = {
        0: "tench",
        207: "golden retriever",
        388: "giant panda",
        980: "volcano",
        999: "toilet tissue",
    }
    assert {label: imagenet.names[label][0] for label in landmarks} == landmarks


@pytest.mark.parametrize(
    ("wanted", "label"),
    [
        (207, 207),
        ("207", 207),
        (1000, 1000),
        ("golden retriever", 207),
        ("Golden Retriever", 207),
        (" volcano ", 980),
        ("Tinca tinca", 0),  # a synonym
        ("toilet paper", 999),
        ("golden r", 207),  # a beginning
        ("goldfish", 1),
    ],
)
def test_label(imagenet: ClassNames, wanted: int | str, label: int) -> None:
    assert imagenet.label(wanted) == label


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (1001, r"expected 0 to 1000 \(1000 means no class\), found 1001"),
        (-1, "found -1"),
        ("1001", "found 1001"),
        ("crane", r"134 \(crane\), 517 \(crane\); give the number"),
        ("maillot", r"638 \(maillot\), 639 \(maillot\)"),
        ("black", r"may be .* or \d+ more; give the number"),
        ("golden retreiver", r"did you mean 207 \(golden retriever\)"),
        ("xyzzyx", "no class has this name; look it up in the list of classes"),
        ("", "no class has this name"),
    ],
)
def test_label_errors_say_what_may_be_meant(imagenet: ClassNames, wanted: int | str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        imagenet.label(wanted)


def test_what_is_listed_can_be_given_as_a_label(imagenet: ClassNames) -> None:
    lines = imagenet.listing().splitlines()
    assert len(lines) == len(set(line[5:] for line in lines)) == 1000  # even the two cranes
    for label, line in enumerate(lines):
        names = line[5:]
        for text in (line, line.strip(), names, *names.split("; ")):
            assert imagenet.listed([text]) == [label], text


def test_lists_of_labels(imagenet: ClassNames) -> None:
    assert imagenet.listed(["tench, Tinca tinca"]) == [0]  # as lists of these classes are usually written
    assert imagenet.listed(["207, tench, Tinca tinca,980", "crane (517)", "none"]) == [207, 0, 980, 517, 1000]
    assert imagenet.listed(["goldfish, tench"]) == [1, 0]
    names = ClassNames(2, (("salt, pepper",), ("a;b",)))
    assert names.listed(["salt, pepper,a;b"]) == [0, 1]
    for text, message in (("1,", "label ''"), ("9" * 5000, "expected 0 to 1000"), ("٣", "no class has this name")):
        with pytest.raises(SettingsError, match=message):
            imagenet.listed([text])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\nb\xff\n", "not UTF-8 at byte 3"),
        (b"\xef\xbb\xbfa\nb\n", "byte order mark"),
        (b"a\nb\0\n", "without NUL"),
        (b"a\nb\x1b[31m\n", "line 2: expected a printable name"),
        ("a\nb\u2028c\n".encode(), "line 2: expected a printable name"),
        (b"a\n" + b"b" * 1025, "line 2: expected a printable name of at most 1024"),
        (b"a\n", "expected 2 lines, one for each class, found 1"),
    ],
)
def test_class_files_that_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(data)
    with pytest.raises(BundleError, match=message):
        ClassNames.read(tmp_path / "classes.txt", 2)


def test_bundle_without_names_takes_numbers_only() -> None:
    names = ClassNames(10)
    assert names.labels([3, "10"]) == [3, 10]
    assert names.labels("3") == names.labels(3) == [3]
    with pytest.raises(SettingsError, match="has no class names; give a number"):
        names.label("tench")


def test_file_with_another_number_of_classes(own_bundle: Path) -> None:
    manifest = Manifest.load(own_bundle)
    (own_bundle / "classes.txt").write_text("tench\n")
    with pytest.raises(BundleError, match="expected 5 lines, one for each class, found 1"):
        ClassNames.load(own_bundle, manifest)


def test_none_is_no_class(imagenet: ClassNames) -> None:
    assert imagenet.labels(["none", "None", 1000]) == [1000] * 3
    assert ClassNames(10).label("none") == 10
