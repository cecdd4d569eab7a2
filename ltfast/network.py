"""Whether there is a network: asked once, and briefly, before a library tries for minutes."""

import os
import ssl
import threading
import urllib.error
import urllib.request
from functools import cache


def seconds() -> float:
    """How long an answer is waited for: `HF_HUB_ETAG_TIMEOUT`, or 3."""
    try:
        return float(os.environ["HF_HUB_ETAG_TIMEOUT"])
    except (KeyError, ValueError):
        return 3.0


@cache
def reachable(url: str) -> bool:
    """Whether something answers at an address of the web, directly or through the environment's proxy."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds()).close()
        except urllib.error.HTTPError:  # 404, say, is an answer
            answered.set()
        except OSError as error:  # the library that downloads may know certificates that Python does not
            if isinstance(getattr(error, "reason", error), ssl.SSLError):
                answered.set()
        else:
            answered.set()

    # in a thread: the time limit of a connection counts neither the name's resolution nor an address after another
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds())
    return answered.is_set()


@cache
def hub_unreachable() -> str | None:
    """Why Hugging Face's hub cannot be asked, None if it can. Where it does not answer, its libraries look into their
    caches alone from now on."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if reachable(constants.ENDPOINT):
        return None
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"  # for the library `datasets`, which reads it when it is imported
    return f"{constants.ENDPOINT} does not answer within {seconds():g} seconds"
