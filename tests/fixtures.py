"""Fixtures of several folders. A conftest.py that imports one runs it for each of its folder's tests."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Results depend on the number of threads, and small tensors do not benefit from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its state for the lifetime of a process, but each run of a test creates its own."""
    from accelerate.state import AcceleratorState  # not at the top: the tests of ops run without it

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True, scope="module")
def undrawn_pictures():
    """The pictures of a run take as long to draw as a small training. `engine/test_picture.py` and
    `engine/test_result_plots.py` draw them."""
    from ltfast.engine import loop, report
    from ltfast.runs import mistakes

    with pytest.MonkeyPatch.context() as patch:
        for module in (loop, report):
            patch.setattr(module, "plot_per_class", lambda path, *_: path.write_bytes(b"picture"))
        patch.setattr(mistakes, "plot_mistakes", lambda path, found: path.write_bytes(b"picture"))
        yield


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """The user's cache is left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTFAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def fresh_random_numbers():
    """Each test draws new numbers; the seed is shown if the test fails."""
    print(f"torch.manual_seed({torch.seed()})")
