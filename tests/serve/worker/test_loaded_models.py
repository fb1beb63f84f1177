"""Models of a studio: what can be named, what stays loaded, what is let go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from gouache.errors import MissingDependency, ModelNotFound
from gouache.pipeline.generate.generation import Event
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request
from gouache.serve.models.catalog import ModelCatalog, ModelEntry
from gouache.serve.settings import Settings
from gouache.serve.start import check_can_paint
from gouache.serve.store.database import Database
from gouache.serve.studio import Studio
from gouache.serve.worker.loaded_models import LoadedModels, Painter, open_pipeline


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[ModelCatalog]:
    folder = tmp_path / "models"
    (folder / "deep" / "folder-model").mkdir(parents=True)
    (folder / "deep" / "folder-model" / "model_index.json").write_text("{}")
    (folder / "deep" / "folder-model" / "unet.safetensors").write_bytes(b"1234")
    (folder / "one.safetensors").write_bytes(b"12")
    (folder / "notes.txt").write_text("no model")
    (folder / "evil.py").write_text("raise SystemExit")
    database = Database(f"sqlite:///{tmp_path / 'store.sqlite3'}")
    yield ModelCatalog([folder], database)
    database.close()


def test_files_and_folders_are_found_and_nothing_else(catalog: ModelCatalog) -> None:
    found = {entry.name: entry.size for entry in catalog.entries()}
    assert found == {"pocket": 0, "deep/folder-model": 6, "one.safetensors": 2}


def test_a_model_answers_to_name_stem_title_and_hash(catalog: ModelCatalog) -> None:
    entry = catalog.find("one")
    assert entry.title == "one.safetensors"
    catalog.remember_hash(entry, "ab" * 32)
    for name in ("one.safetensors", "one", "one.safetensors [ababababab]", "ababababab", "ab" * 32):
        assert catalog.find(name).sha256 == "ab" * 32
    assert catalog.find(None).name == "pocket"
    with pytest.raises(ModelNotFound, match=r"Did you mean 'one\.safetensors'"):
        catalog.find("one.safetensor")


def test_a_hash_is_forgotten_when_the_file_changes(catalog: ModelCatalog) -> None:
    entry = catalog.find("one")
    catalog.remember_hash(entry, "ab" * 32)
    assert entry.path is not None
    entry.path.write_bytes(b"other bytes")
    catalog.refresh()
    assert catalog.find("one").sha256 is None


class Empty:
    """A painter without weights."""

    def run(self, request: Request, attachments: Mapping[str, bytes] | None = None) -> Iterator[Event]:
        del request, attachments
        return iter(())


def entry_of(name: str, size: int) -> ModelEntry:
    return ModelEntry(name, Path(name), size, 0.0)


def test_the_least_recently_used_model_leaves_when_memory_is_short() -> None:
    opened: list[str] = []

    def open_model(entry: ModelEntry, device: str | None, dtype: str | None, engine: str) -> Painter:
        del device, dtype, engine
        opened.append(entry.name)
        return Empty()

    models = LoadedModels(open_model, budget=10)
    for name, size in (("a", 4), ("b", 4), ("a", 4), ("c", 4)):
        models.get(entry_of(name, size))
    assert models.names() == ["a", "c"]
    assert opened == ["a", "b", "c"]
    models.get(entry_of("large", 50))
    assert models.names() == ["large"]
    models.forget()
    assert models.names() == []


def test_the_model_that_needs_no_file_paints() -> None:
    painter = open_pipeline(ModelEntry("pocket", None, 0, 0.0), "cpu")
    request = Request(prompt="x", seed=1, num_inference_steps=1, width=64, height=64)
    assert list(painter.run(request))[-1]


def test_models_are_loaded_in_the_format_of_the_settings() -> None:
    settings = Settings.from_dict({"data": Path(), "dtype": "bfloat16"})
    models = LoadedModels(open_pipeline, budget=1, device="cpu", dtype=settings.dtype)
    painter = models.get(ModelEntry("pocket", None, 0, 0.0))
    assert isinstance(painter, Pipeline)
    assert painter.bundle.dtype == torch.bfloat16


def test_models_are_run_by_the_engine_of_the_settings() -> None:
    settings = Settings.from_dict({"data": Path(), "engine": "auto"})
    models = LoadedModels(open_pipeline, budget=1, device="cpu", engine=settings.engine)
    painter = models.get(ModelEntry("pocket", None, 0, 0.0))
    assert isinstance(painter, Pipeline)
    assert painter.engine.asked == "auto"
    assert painter.engine.name == "torch", "the shipped model is too small to gain"


def test_a_studio_whose_engine_is_not_installed_does_not_start(
    catalog: ModelCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    settings = Settings.from_dict({"data": Path(), "engine": "compile"})
    check_can_paint(catalog, settings, workers=0)  # the machines that paint may have one
    with pytest.raises(MissingDependency, match="no-such-compiler"):
        check_can_paint(catalog, settings, workers=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_after_fifty_switches_is_that_after_two(tmp_path: Path) -> None:
    from gouache.serve.http.ops import resident_bytes

    del tmp_path
    models = LoadedModels(open_pipeline, budget=1, device="cpu")
    sizes = []
    for k in range(50):
        painter = models.get(entry_of_untrained(k % 2))
        list(painter.run(Request(prompt="x", seed=1, num_inference_steps=1, width=64, height=64)))
        del painter
        sizes.append(resident_bytes(None))
    assert sizes[-1] <= 1.1 * sizes[1]


def entry_of_untrained(number: int) -> ModelEntry:
    return ModelEntry(f"untrained-{number}", None, 0, float(number))


def test_settings_say_where_they_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="port"):
        Settings.from_dict({"data": tmp_path, "port": 99_999})
    with pytest.raises(Exception, match="store: given"):
        Studio(Settings(data=tmp_path, store="nonsense://x", workers=0))
