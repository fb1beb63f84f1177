"""Networks that draw control pictures and masks, on the disk: transformers' folders. Headers only, and no torch.

They lie in the folder ``preprocessors`` (any case) of `hub.models_folder`, each in a folder of its own with
``config.json``, whose class says what it draws. A name from a request never becomes a path.
"""

from __future__ import annotations

from pathlib import Path

from gouache.checkpoints import hub
from gouache.checkpoints.diffusers.folder import read_json
from gouache.errors import GouacheError, InvalidInput, ModelNotFound

KIND = "preprocessor"
DRAWN = {"depth": "ForDepthEstimation", "segmentation": "ForSemanticSegmentation"}
"""What such networks draw, and how their classes in transformers are called."""
MASK = "mask"
"""What a network draws of a picture and words: where in the picture they are seen."""
CLASSES = {**DRAWN, MASK: "CLIPSegForImageSegmentation"}
EXAMPLES = {
    MASK: "CIDAS/clipseg-rd64-refined",
    "depth": "depth-anything/Depth-Anything-V2-Small-hf or Intel/dpt-large",
    "segmentation": "nvidia/segformer-b0-finetuned-ade-512-512",
}


def drawable(folder: Path | None = None) -> tuple[str, ...]:
    """What can be drawn with the networks on the disk, apart from what needs none.

    Args:
        folder: the models folder; None takes `hub.models_folder()`.
    """
    return tuple(kind for kind in DRAWN if _networks(kind, folder or hub.models_folder()))


def find_preprocessor(kind: str, folder: Path | None = None) -> Path:
    """The folder of the network that draws a kind: the one called as the kind is, else the only one.

    Args:
        kind: a key of `CLASSES`.
        folder: the models folder; None takes `hub.models_folder()`.

    Raises:
        ModelNotFound: there is none.
        InvalidInput: there are several, and none is called so.
    """
    root = folder or hub.models_folder()
    found = _networks(kind, root)
    named = [path for path in found if path.name.lower() == kind]
    if len(named) == 1 or len(found) == 1:
        return (named or found)[0]
    if not found:
        raise ModelNotFound(
            field_of(kind),
            given="no network that draws it",
            expected=f"a folder of transformers with one ({CLASSES[kind]}) in {root / hub.PREPROCESSOR_FOLDERS[0]}",
            cure=f"Download one, for example {EXAMPLES[kind]}.",
        )
    raise InvalidInput(
        field_of(kind),
        given=f"{len(found)} networks: {', '.join(path.name for path in found)}",
        expected=f"one, or one called {kind}",
        cure="Rename the one that you mean.",
    )


def field_of(kind: str) -> str:
    """The field of a request that asks for a kind, as errors name it."""
    return "mask.text" if kind == MASK else f"control.preprocessor {kind!r}"


def _networks(kind: str, root: Path) -> list[Path]:
    tops = [path for path in sorted(root.iterdir()) if path.is_dir()] if root.is_dir() else []
    configs = [
        config
        for top in tops
        if top.name.lower() in hub.PREPROCESSOR_FOLDERS
        for config in sorted(top.glob("*/config.json"))
    ]
    return [config.parent for config in configs if class_of(config).endswith(CLASSES[kind])]


def class_of(config: Path) -> str:
    """The class of transformers that a `config.json` names; "" if it names none."""
    try:
        named = read_json(config).get("architectures")
    except GouacheError:
        return ""
    return str(named[0]) if isinstance(named, list) and named else ""
