import pytest

from fuzz.runner import ran


@pytest.fixture(autouse=True)
def counted(request):
    """The number of cases, for report.py."""
    yield
    name = request.function.fuzzed
    request.node.user_properties.append((f"fuzz {name}", ran[name]))
