"""What the commands `serve` and `worker` share at their start: settings from options, and what could never paint."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from gouache.checkpoints.hub import data_folder, model_folders
from gouache.checkpoints.identify import identify
from gouache.errors import DeviceUnavailable, GouacheError, InvalidInput, ModelNotFound
from gouache.pipeline.engine.names import check_engine
from gouache.pipeline.request import Request
from gouache.serve.models.catalog import UNUSABLE, ModelCatalog
from gouache.serve.search.vectors import missing_tower
from gouache.serve.settings import Settings
from gouache.serve.store.accounts import ADMIN


def make_settings(given: Mapping[str, Any]) -> Settings:
    """Settings from the command line: what it gave by name of the field; None and empty lists leave the default.

    Raises:
        ModelNotFound: a file that isn't there.
        ConfigError, InvalidInput: a value that a setting can't have.
    """
    values = {name: value for name, value in given.items() if value is not None and value != []}
    if "search_tower" in values and not values["search_tower"].expanduser().is_file():
        raise missing_tower(values["search_tower"])
    for folder in values.get("models", ()):
        if not folder.expanduser().is_dir():
            cure = "Make it, or name another with --models."
            raise ModelNotFound("models", given=str(folder), expected="a folder that exists", cure=cure)
    if "safety_checker" in values and not values["safety_checker"].expanduser().exists():
        raise ModelNotFound(
            "safety checker", given=str(values["safety_checker"]), expected="a folder or file that exists"
        )
    if "watermark" in values:
        Request.from_dict({"watermark": values["watermark"]}, where="serve")
    for name in ("search_tower", "safety_checker"):
        if name in values:
            values[name] = values[name].expanduser().resolve()
    values["data"] = (values.get("data") or data_folder()).expanduser()
    if re.match(r"\w{2,}:[/\\]", str(values["data"])):
        # A folder of that name would be made and used, and every machine had pictures of its own.
        raise InvalidInput(
            "data",
            given=repr(str(given["data"])),
            expected="a folder of this machine",
            cure="Name an object store with --files s3://BUCKET/PREFIX.",
        )
    values["models"] = (*model_folders(), *(path.expanduser() for path in values.get("models", ())))
    for name in ("allowed_hosts", "behind_proxy"):
        values[name] = tuple(values.get(name, ()))
    if "model_aliases" in values:
        values["model_aliases"] = tuple(name for name in values["model_aliases"] if name)
    values["admins"] = (ADMIN, *values.get("admins", ()))
    return Settings.from_dict(values, where="serve")


def check_can_paint(catalog: ModelCatalog, settings: Settings, workers: int) -> None:
    """Refuse to start what could never paint.

    Args:
        catalog: the models.
        settings: what was asked for.
        workers: how many start on this machine.

    Raises:
        ModelNotFound, CheckpointError: there is no default model of this name, or it can't be used.
        DeviceUnavailable: one of the workers' devices is not on this machine.
        InvalidInput: more devices than workers.
        MissingDependency: the engine isn't installed.
    """
    entry = catalog.find(None)
    if entry.kind == UNUSABLE and entry.path is not None:
        identify(entry.path)  # Says why.
    if not workers:
        return
    if len(settings.devices) > workers:
        raise InvalidInput(
            "device",
            given=f"{len(settings.devices)} devices for {workers} workers",
            expected="at least one worker for each device",
            cure=f"Add --workers {len(settings.devices)}.",
        )
    check_engine(settings.engine)
    for device in settings.devices:
        check_device(device)


_CHECK_DEVICE = """
import json, sys
from gouache.errors import GouacheError
from gouache.pipeline.pipeline import check_device
try:
    check_device(sys.argv[1])
except GouacheError as error:
    print(json.dumps(error.to_dict()))
"""


def check_device(device: str | None) -> None:
    """Refuse a device that isn't there, asked in a process of its own: this one never loads torch.

    Raises:
        DeviceUnavailable: it isn't there.
    """
    if device in (None, "cpu"):
        return
    asked = subprocess.run([sys.executable, "-c", _CHECK_DEVICE, str(device)], capture_output=True, text=True)
    if asked.returncode:
        raise DeviceUnavailable("device", given=str(device), expected="a device that torch can be asked about")
    if asked.stdout.strip():
        raise GouacheError.from_dict(json.loads(asked.stdout.splitlines()[-1]))
