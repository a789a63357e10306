"""Fixtures that several test files share."""

import pytest


@pytest.fixture
def dask_client():
    """A cluster of one thread in this process."""
    import distributed

    with distributed.Client(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        dashboard_address=":0",
        set_as_default=False,
    ) as client:
        yield client
