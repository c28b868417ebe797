import pytest
from small import altered, measured_document


@pytest.fixture(scope="session")
def steady():
    """A measured document in which no round differs from another."""
    return altered(measured_document(), "all", 1.0)
