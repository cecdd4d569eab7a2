"""`folder:DIR`: one folder of images per class."""

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ltfast.data.datasets import FileDataset
from ltfast.data.formats import FORMATS, extensions
from ltfast.data.splits import Splits
from ltfast.errors import InputError, InputNotFoundError

_EXAMPLES = 3  # number of examples in a message


def read_folder(
    root: Path,
    train: Sequence[str] = ("train",),
    held_out: Sequence[str] = ("test", "val"),
    validation: Sequence[str] = ("val",),
    *,
    test_needed: bool = True,
) -> Splits:
    """Read the images below a folder that has a training and a test part, each with one folder per class.

    The classes are the folders of the training part, sorted by name. The images of a class are the files in its folder
    and its subfolders whose extension is in `ltfast.data.formats`. Links to files are followed, wherever they lead.
    `root` and its parts may be links.

    Hidden files and folders (`.name`), files without an image extension, files next to the class folders, and special
    files (FIFOs, sockets, devices) are left out; `left_out` counts them.

    Args:
        root: the folder.
        train, held_out: candidate names of the folders of the training and the test part; the first that exists is
            used.
        validation: candidate names of the folder of the validation part, which may be missing. A folder that is the
            test part is not used.
        test_needed: whether the test part must exist. If not, the training part may also be `root` itself, where `root`
            has none of these folders.

    Raises:
        InputNotFoundError: a folder is missing, or there are no test or validation images.
        InputError: a class has no training images, or has images in several subfolders but none in their common parent;
            another part has other classes; a link leads to a folder outside `root`, or to one that is read anyway; a
            folder cannot be read.
    """
    train_folder, test_folder = _first_folder(root, train), _first_folder(root, held_out)
    others = [name for name in validation if test_folder is None or root / name != test_folder]
    validation_folder = _first_folder(root, others)
    if train_folder is None and test_folder is None and not test_needed and root.is_dir():
        train_folder = root
    if train_folder is None or (test_folder is None and test_needed):
        missing = (root / (train if train_folder is None else held_out)[-1]) if root.is_dir() else root
        raise InputNotFoundError(
            f"folder: no folder {missing}; expected {_names(train)} and {_names(held_out)} in {root}; with "
            f"--test-fraction, {_names(train)} alone or one folder per class in {root}"
        )
    walk = _Walk(root, [part for part in (train_folder, test_folder, validation_folder) if part not in (None, root)])
    names, files = walk.classes(train_folder)
    if not names:
        raise InputError(f"{train_folder}: expected a folder for each class, got none")
    empty = [name for name in names if not files[name]]
    if empty:
        shown = ", ".join(f"{name} ({_content(train_folder / name)})" for name in empty[:5])
        raise InputError(
            f"folder:{root}: expected training images of all {len(names)} classes, but {len(empty)} have none: {shown}"
            f"{', ...' if len(empty) > 5 else ''}; images are files of the formats {', '.join(FORMATS)}"
        )

    def other(folder: Path | None, what: str) -> FileDataset | None:
        if folder is None:
            return None
        present, files = walk.classes(folder)
        if unknown := sorted(set(present) - set(names)):
            raise InputError(f"{folder}: expected the classes of {train_folder}, got further classes {unknown[:5]}")
        if not any(files.values()):
            raise InputNotFoundError(f"{folder}: expected {what} images, got none")
        return _dataset(names, files)

    folders = {"test": test_folder, "validation": validation_folder}
    parts = {what: other(folder, what) for what, folder in folders.items()}
    return Splits(
        _dataset(names, files),
        parts["test"],
        validation=parts["validation"],
        left_out=walk.left_out(),
        origins={what: f"{folder.name}/" for what, folder in folders.items() if folder is not None},
    )


def read_test_folder(root: Path, held_out: Sequence[str] = ("test", "val")) -> tuple[FileDataset, str | None]:
    """Read the images of the test part alone; see `read_folder`. The training part may be missing.

    Returns:
        The images, whose classes are the folders of the test part, sorted by name; and one line about the files that
        were left out, or None.

    Raises:
        InputNotFoundError: the folder is missing, or it has no images.
        InputError: see `read_folder`.
    """
    part = _first_folder(root, held_out)
    if part is None:
        missing = root / held_out[-1] if root.is_dir() else root
        raise InputNotFoundError(f"folder: no folder {missing}; expected {_names(held_out)} in {root}")
    walk = _Walk(root, [part])
    names, files = walk.classes(part)
    if not any(files.values()):
        raise InputNotFoundError(f"{part}: expected test images, got none")
    return _dataset(names, files), walk.left_out()


def _dataset(names: Sequence[str], files: Mapping[str, Sequence[str]]) -> FileDataset:
    """The images of the classes `names`, from the paths of each class; a class without paths may be missing."""
    labels = torch.arange(len(names)).repeat_interleave(torch.tensor([len(files.get(name, ())) for name in names]))
    return FileDataset([path for name in names for path in files.get(name, ())], labels, names)


def _first_folder(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _names(names: Sequence[str]) -> str:
    return " or ".join(f"{name}/" for name in names)


def _content(folder: Path) -> str:
    """Describe the content of a folder without images."""
    names = sorted(os.listdir(folder))
    shown = ", ".join(repr(name) for name in names[:_EXAMPLES])
    return f"it contains {shown}{', ...' if len(names) > _EXAMPLES else ''}" if names else "it is empty"


class _Walk:
    """Visits each folder of a data set once."""

    def __init__(self, root: Path, parts: Sequence[Path]) -> None:
        self.root = root
        self.inside = [os.path.realpath(folder) for folder in (root, *parts)]  # where links may lead
        # real path of each visited folder -> path by which it was reached; without parts, the root is itself visited
        self.seen = {self.inside[0]: str(root)} if parts else {}
        self.counts: Counter[str] = Counter()
        self.examples: defaultdict[str, list[str]] = defaultdict(list)

    def classes(self, part: Path) -> tuple[list[str], dict[str, list[str]]]:
        """The sorted names of the classes, and the paths of the images of each class."""
        real = os.path.realpath(part)
        folders, images = self._look(str(part), real)
        for image in images:
            self._leave_out("next to the class folders", image)
        for name in folders:
            if os.fsencode(name).decode(errors="replace") != name:
                raise InputError(f"{part}: expected class names in UTF-8, got {name!r}; rename the folder")
        return list(folders), {name: self._images(os.path.join(part, name), folders[name]) for name in folders}

    def _images(self, folder: str, real: str) -> list[str]:
        """The paths of the images of a class."""
        found, pending = {}, [(folder, real)]
        while pending:
            current, real = pending.pop()
            folders, images = self._look(current, real)
            pending += [(os.path.join(current, name), target) for name, target in folders.items()]
            if images:
                found[current] = images
        if found and (common := os.path.commonpath(found)) not in found:
            below = sorted({os.path.relpath(path, common).split(os.sep)[0] for path in found})
            raise InputError(
                f"{common}: expected the images of one class, got only folders of images "
                f"({', '.join(below[:_EXAMPLES])}{', ...' if len(below) > _EXAMPLES else ''}). If each folder is a "
                f"class, move the folders to {os.path.dirname(folder)}; otherwise, move their images to {common}"
            )
        return [image for path in sorted(found) for image in found[path]]

    def _look(self, folder: str, real: str) -> tuple[dict[str, str], list[str]]:
        """The names of the subfolders with their real paths, and the paths of the images, both sorted by name."""
        if real in self.seen:
            raise InputError(f"{folder} and {self.seen[real]} are the same folder; remove the link")
        self.seen[real] = folder
        try:
            with os.scandir(folder) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"cannot read the folder {folder}: {error.strerror}") from error
        folders, images, known = {}, [], extensions()
        for entry in ordered:
            kind = stat.S_IFREG if entry.is_file(follow_symlinks=False) else _kind(entry)
            if entry.name.startswith("."):
                self._leave_out("hidden", entry.path)
            elif kind == stat.S_IFDIR:
                folders[entry.name] = self._target(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
            elif kind not in (stat.S_IFREG, stat.S_IFLNK):  # opening the image reports a broken link
                self._leave_out("FIFOs, sockets or devices", entry.path)
            elif entry.name[entry.name.rfind(".") :].lower() in known:
                images.append(entry.path)
            else:
                self._leave_out("not images", entry.path)
        return folders, images

    def _target(self, link: str) -> str:
        target = os.path.realpath(link)
        if not any(Path(target).is_relative_to(folder) for folder in self.inside):
            raise InputError(
                f"{link}: expected no link to a folder outside {self.root}, got one to {target}; "
                "copy that folder, or list its images in a file (list:FILE)"
            )
        return target

    def _leave_out(self, reason: str, path: str) -> None:
        self.counts[reason] += 1
        if self.counts[reason] <= _EXAMPLES:
            self.examples[reason].append(repr(os.path.relpath(path, self.root)))

    def left_out(self) -> str | None:
        if not self.counts:
            return None
        reasons = (
            f"{count} {reason} ({', '.join(self.examples[reason])}{', ...' if count > _EXAMPLES else ''})"
            for reason, count in sorted(self.counts.items())
        )
        return f"left out of {self.root}: {', '.join(reasons)}"


def _kind(entry: os.DirEntry[str]) -> int:
    """The file type bits of an entry, after following links; those of the link itself if it is broken."""
    try:
        return stat.S_IFMT(entry.stat().st_mode)
    except OSError:
        return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
