"""Fixtures that several test files share."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

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


@pytest.fixture(scope="session")
def benchmark() -> Callable[[str], ModuleType]:
    """Brings one of the scripts in benchmarks/ by its name."""

    def load(name: str) -> ModuleType:
        path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"{name}_benchmark", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load
