from pathlib import Path

import pytest

from fuzz.runner import ran


@pytest.fixture(autouse=True)
def counted(request):
    """The number of cases, for report.py."""
    yield
    name = request.function.fuzzed
    request.node.user_properties.append((f"fuzz {name}", ran[name]))


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == Path(__file__).parent and item.name.endswith("_triton"):  # in the interpreter
            item.add_marker(pytest.mark.slow)
