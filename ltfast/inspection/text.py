"""The findings in words."""

from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table

from ltfast.inspection.duplicates import MOST_BITS, Pair, at_each_distance, kinds
from ltfast.inspection.look import Look
from ltfast.terminal import shown

_ROWS = 20  # classes in the table; of more classes, half of these from either end
_NAMED = 10  # unreadable files
_EXAMPLES = 3


def class_table(look: Look) -> Table:
    """The images of each class, the largest class first; of many classes, the largest and the smallest ones."""
    parts = list(look.images)
    ordered = sorted(look.classes, key=lambda row: -row["training"])
    table = Table(title="images of each class", title_justify="left")
    table.add_column("class", overflow="fold")
    for part in parts:
        table.add_column(part, justify="right")
    table.add_column("group")
    whole = len(ordered) <= _ROWS
    for row in ordered if whole else [*ordered[: _ROWS // 2], None, *ordered[-_ROWS // 2 :]]:
        if row is None:
            table.add_row(f"... {len(ordered) - _ROWS:,} more", *[""] * len(parts), "")
        else:
            table.add_row(escape(shown(row["name"])), *(f"{row[part]:,}" for part in parts), row["group"])
    return table


def lines(look: Look) -> Iterator[str]:
    """The findings but for the table, a line each."""
    most, least = look.minima
    sizes = {name: sum(row["group"] == name for row in look.classes) for name in ("many", "medium", "few")}
    groups = ", ".join(f"{name}: {_number(size, 'class', 'classes')}" for name, size in sizes.items())
    yield f"{groups} (many: {most} training images or more; few: fewer than {least})"
    for side in ("width", "height", "short side"):
        yield f"{side} in pixels: " + ", ".join(f"{word} {value}" for word, value in look.sizes[side].items())
    yield "modes: " + ", ".join(f"{mode} {number:,}" for mode, number in look.sizes["modes"].items())
    yield f"unreadable images: {len(look.unreadable) or 'none'}"
    yield from (f"  {reason}" for reason in look.unreadable[:_NAMED])
    if len(look.unreadable) > _NAMED:
        yield f"  and {len(look.unreadable) - _NAMED:,} more"
    pairs = look.pairs_by_kind()
    yield from _of_pairs(look, "equal images (all pixels)", pairs["equal"])
    yield from _of_pairs(look, f"similar images (perceptual hashes differ in {MOST_BITS} of 64 bits or fewer)",
                         pairs["similar"])  # fmt: skip
    if not look.complete:
        yield "  there are more similar images, which were not looked for any further"
    if look.constant:
        yield f"images of one colour: {len(look.constant):,} ({_some([look.names[n] for n in look.constant])})"
    for both, names in look.groups.items():
        yield f"groups with images in {both}: {len(names):,} ({_some(names)})"
    if look.left_out is not None:
        yield look.left_out
    yield "suggestions:"
    yield from (f"  {reason}" for reason in look.suggestion.reasons)
    yield f"start with: {look.suggestion.command}"


def _of_pairs(look: Look, what: str, pairs: Sequence[Pair]) -> Iterator[str]:
    if not pairs:
        yield f"{what}: none"
        return
    distances = ", ".join(f"{number:,} at {bits} bits" for bits, number in at_each_distance(pairs).items())
    yield f"{what}: {_number(len(pairs), 'pair', 'pairs')}{f', {distances}' if distances else ''}"
    found = kinds(pairs, look.parts, look.labels)
    of_kinds = {
        **{f"one in {one}, one in {other}": number for (one, other), number in found.two_parts.items()},
        "two labels": found.two_classes,
        "same part and label": found.copies,
    }
    for words, number in of_kinds.items():
        if number:
            yield f"  {words}: {number:,}"
    # those that matter first
    ordered = sorted(pairs, key=lambda pair: (look.labels[pair.first] == look.labels[pair.second],
                                              look.parts[pair.first] == look.parts[pair.second]))  # fmt: skip
    for pair in ordered[:_EXAMPLES]:
        ends = (f"{look.names[end]} ({look.parts[end]}, {look.labels[end]})" for end in (pair.first, pair.second))
        yield f"    {' and '.join(ends)}"


def _number(count: int, one: str, several: str) -> str:
    return f"{count or 'no'} {one if count == 1 else several}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_EXAMPLES]) + (", ..." if len(names) > _EXAMPLES else "")
