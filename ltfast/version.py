"""The version of the installed package."""

import importlib.metadata


def version() -> str:
    """The version, which names the commit if it is not a release."""
    try:
        return importlib.metadata.version("ltfast")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (not installed)"


def release() -> str:
    """The release that this version is, or comes before. It does not change with each commit, so that a run can be
    continued."""
    return version().split(".dev")[0]
