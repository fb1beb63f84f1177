"""What the metadata of a LoRA file say of the pictures it was trained on, by kohya's names."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from gouache.data.packed import PackedRecord
from gouache.training.batches.tuning_set import TuningSet


def facts_of(data: TuningSet) -> dict[str, object]:
    """Folders with their repeats, pictures an epoch, and how often captions have each tag."""
    source = Path(data.pictures.manifest.source).name
    folders: dict[str, list[PackedRecord]] = {}
    records_shown = [data.pictures.records[row] for row in data.rows]
    for record in dict.fromkeys(one for one in records_shown if not one.regularisation):
        folders.setdefault(PurePosixPath(record.key).parent.name or source, []).append(record)
    dirs = {name: {"n_repeats": records[0].repeats, "img_count": len(records)} for name, records in folders.items()}
    tags = {name: _tags(caption for one in records for caption in one.captions) for name, records in folders.items()}
    return {
        "ss_num_train_images": sum(not one.regularisation for one in records_shown),
        "ss_num_reg_images": sum(one.regularisation for one in records_shown),
        "ss_dataset_dirs": json.dumps(dirs, ensure_ascii=False),
        "ss_tag_frequency": json.dumps(tags, ensure_ascii=False),
    }


def _tags(captions: Iterable[str]) -> dict[str, int]:
    """How many captions have each part between commas, in small letters."""
    return dict(Counter(tag for caption in captions for part in caption.split(",") if (tag := part.strip().lower())))
