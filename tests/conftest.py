"""Settings of all tests: 8 virtual CPU devices, an error where ranks are promoted, the same examples in every run."""

import gc
import importlib.metadata
import importlib.util
import itertools
import os
import threading

import hypothesis
import jax
import pytest
from jax._src.interpreters import mlir

# Read when the first array is made, so it may be set after `import jax` but not much later; of two flags the last wins.
flags = ["--xla_force_host_platform_device_count=8"]
# What a test costs is the compilation of its programs: without the newer emitters of fusions and with one module a
# program, XLA takes a third of the time. Later versions of jaxlib end the process at flags that they do not know.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])


CONTEXTS = threading.local()
FILES = itertools.count(1)


def lower_in_one_thread() -> None:
    """Lowering takes one thread and one context of MLIR.

    A context takes longer to make than a small program, and one with several threads the longer the more there are.
    """
    make_ir_context = mlir.make_ir_context

    def make_context():
        if not hasattr(CONTEXTS, "context"):
            CONTEXTS.context = make_ir_context()
            CONTEXTS.context.enable_multithreading(False)
        return CONTEXTS.context

    mlir.make_ir_context = make_context


if hasattr(mlir, "make_ir_context"):  # no public name, so later versions may be without it
    lower_in_one_thread()

# For the processes that tests start, as `compile_fast` for the tests.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_traceback_in_locations_limit", 0)

hypothesis.settings.register_profile("fobt", derandomize=True, database=None, deadline=None, max_examples=30)
hypothesis.settings.load_profile("fobt")


@pytest.fixture
def x64():
    """64-bit types for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def compile_fast(request: pytest.FixtureRequest):
    """Programs here compile for long and run for moments, so LLVM optimizes only those marked `optimized`."""
    jax.config.update("jax_disable_most_optimizations", request.node.get_closest_marker("optimized") is None)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Some files share a few small programs, but the programs of all files take gigabytes."""
    yield
    if next(FILES) % 5 == 0:
        jax.clear_caches()
        CONTEXTS.__dict__.clear()


def pytest_collection_finish():
    """Garbage is not looked for among what was imported, and seldom: 6 to 10 % of the time went there."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_collection_modifyitems(items: list[pytest.Item]):
    """The example of the LiteRT export needs a package that does not exist for every platform."""
    if importlib.util.find_spec("litert_converter") is None:
        for item in items:
            if item.name == "fobt._src.export.litert.convert.to_litert":
                item.add_marker(pytest.mark.skip(reason="needs pip install --no-deps litert-converter"))
