"""A short, cached check for network access, made before a library would retry for minutes."""

import os
import ssl
import threading
import urllib.error
import urllib.request
from functools import cache


def seconds() -> float:
    """The timeout of the check in seconds: `HF_HUB_ETAG_TIMEOUT`, or 3 if it is unset or not a number."""
    try:
        return float(os.environ["HF_HUB_ETAG_TIMEOUT"])
    except (KeyError, ValueError):
        return 3.0


@cache
def reachable(url: str) -> bool:
    """Whether a server answers at this URL, directly or through the proxy set in the environment."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds()).close()
        except urllib.error.HTTPError:  # an error status such as 404 is an answer too
            answered.set()
        except OSError as error:  # the downloading library may trust certificates that Python does not
            if isinstance(getattr(error, "reason", error), ssl.SSLError):
                answered.set()
        else:
            answered.set()

    # A thread bounds the total time: the socket timeout excludes name resolution and applies to each address anew.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds())
    return answered.is_set()


@cache
def hub_unreachable() -> str | None:
    """The reason why the Hugging Face Hub cannot be reached, or None if it can.

    If it does not answer, its libraries are switched to offline mode for the rest of the process.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if reachable(constants.ENDPOINT):
        return None
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"  # the library `datasets` reads it on import
    return f"{constants.ENDPOINT} does not answer within {seconds():g} seconds"
