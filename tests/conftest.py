"""What holds for every test: one thread a process, compiled modules kept, and no deadline for generated examples.

The suite runs one process a core, and two cores shared by four threads crawl. On a busy machine an example may take any
time, and that says nothing about the code.

`@pytest.mark.every_time("a", "*-b")` on a parametrised test: the default suite runs the cases of these names, which may
be patterns of the shell's kind, and `-m slow` the others. It is for cases of one kind that take long, where a few of
them find what all would find on most days.

What `long_tests.txt` names is marked `long`: `make test` leaves it to `make test-long`, and the build runs both.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections import defaultdict
from fnmatch import fnmatchcase
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.pipeline.sd3_twins import Sd3Twins

# Before torch is imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Each of those processes would compile the package's two hundred modules again, a quarter of its start. A copy of the
# package that is changed between runs (faults/run.py) must not keep them, and says so.
if not os.environ.get("GOUACHE_TEST_CHANGING"):
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
LONG = frozenset(Path(__file__).with_name("long_tests.txt").read_text(encoding="utf-8").splitlines())
settings.register_profile("gouache", deadline=None)
settings.load_profile("gouache")


def pytest_configure() -> None:
    """Collecting makes millions of objects and frees few: looking through them again and again only takes time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look at it with every test's garbage, half a second."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)  # before `-m` is applied
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is long, and as slow the cases that `every_time` doesn't name."""
    cases: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for item in items:
        if item.nodeid in LONG:
            item.add_marker(pytest.mark.long)
        mark = item.get_closest_marker("every_time")
        if mark is None:
            continue
        case = item.callspec.id if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ""
        there, unused = cases[item.nodeid.partition("[")[0]]
        unused |= set(mark.args) - {pattern for one in there for pattern in mark.args if fnmatchcase(one, pattern)}
        there.add(case)
        found = {pattern for pattern in mark.args if fnmatchcase(case, pattern)}
        unused -= found
        if not found:
            item.add_marker(pytest.mark.slow)
    for test, (there, unused) in cases.items():
        # A single case asked for by its name, as in `pytest FILE::TEST[CASE]`, comes without the others.
        if len(there) > 1 and unused:
            raise pytest.UsageError(f"{test}: every_time names {sorted(unused)}, expected some of {sorted(there)}")


def module_beside(name: str) -> Any:
    """A module under `tests`, loaded by path: tests are no package."""
    path = Path(__file__).parent / name
    spec = spec_from_file_location(f"gouache_test_{path.stem}", path)
    assert spec is not None, f"{path} is there"
    assert spec.loader is not None, "a Python file has a loader"
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Sd3Twins:
    """Stable Diffusion 3 in small, in folders that diffusers writes and gouache loads."""
    twins: Sd3Twins = module_beside("pipeline/sd3_twins.py").Sd3Twins(
        tmp_path_factory.mktemp("sd3"), module_beside("pipeline/twins.py")
    )
    return twins


T5_SENTENCES = (
    "a red apple on a wooden table, oil painting",
    "a photo of a cat, masterpiece, best quality, 8k",
    "two dogs play with a blue ball in the snow; it's winter",
    "une tête à l'ombre d'une façade naïve",
    "the quick brown fox jumps over the lazy dog",
)


@pytest.fixture(scope="session")
def t5_pieces() -> list[tuple[str, float]]:
    """A small vocabulary in T5's numbering, trained by the package tokenizers: padding, end and unknown first, then
    pieces with their scores, T5's hundred sentinels last."""
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram
    from tokenizers.pre_tokenizers import Metaspace, Sequence, WhitespaceSplit
    from tokenizers.trainers import UnigramTrainer

    tokenizer = Tokenizer(Unigram())
    tokenizer.pre_tokenizer = Sequence([WhitespaceSplit(), Metaspace()])
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = UnigramTrainer(vocab_size=150, special_tokens=specials, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(T5_SENTENCES, trainer)
    pieces = [(piece, float(score)) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return [*pieces, *((f"<extra_id_{i}>", 0.0) for i in reversed(range(100)))]
