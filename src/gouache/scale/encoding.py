"""A data set's latents and text states, encoded on a cluster: the batches of `training/batches/store.py`, anywhere.

Every actor builds data set and encoders for itself, from the same folders; what it gives back is one batch. The machine
that asks joins batches into shards and writes them, so that the store is byte for byte the one that it writes alone.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.formats.safetensors import load_tensors, save_tensors
from gouache.errors import CheckpointError, ClusterError
from gouache.pipeline.output.recipe import package_versions
from gouache.scale.cluster import Cluster, connected
from gouache.scale.spread import Failed, Room, check_build, spread
from gouache.training.batches.store import (
    CaptionedSource,
    EncodedStore,
    Encoders,
    batches_of,
    encode,
    encode_batch,
    missing_shards,
    save_shard,
    store_folder,
)
from gouache.training.config import TrainConfig
from gouache.training.inputs import RunInputs
from gouache.training.run import encode_data
from gouache.training.stage import Preparing
from gouache.training.stages.registry import STAGES


@dataclass(frozen=True)
class SpreadInputs(RunInputs):
    """What a stage takes from its run, encoded on a cluster where it isn't stored yet.

    Attributes:
        stage: which stage; its data set and encoders are what the actors build too.
        cluster: connected.
        actors: at most so many; None is as many as there is room for.
    """

    stage: str
    cluster: Cluster
    actors: int | None = None
    asked: list[str] = field(default_factory=list)
    """Names of the stores that the stage has asked for so far."""

    def store(
        self, source: CaptionedSource, encoders: Encoders, count: int
    ) -> Generator[Preparing, None, EncodedStore]:
        """Encode the first `count` examples of a source, unless they are stored already.

        Raises:
            ClusterError: the cluster can't do it. Whole shards are kept.
        """
        folder = store_folder(self.run, source, encoders)
        place = len(self.asked)
        self.asked.append(folder.name)
        shards = {numbers: batches_of(source, numbers) for numbers in missing_shards(folder, count)}
        shard_of = {batch: numbers for numbers, batches in shards.items() for batch in batches}
        tasks = {k: json.dumps([batch.start, batch.stop]) for k, batch in enumerate(shard_of)}
        batches = list(shard_of)
        found: dict[range, dict[range, tuple[dict[str, Tensor], list[str]]]] = {numbers: {} for numbers in shards}
        done = count - sum(map(len, shards))
        folders = (self.data.resolve(), self.run.resolve())
        arguments = (self.stage, self.config, *folders, place, folder.name, package_versions())
        room = Room(torch.get_num_threads(), actors=self.actors)
        for event in spread(self.cluster, tasks, EncodeWork, arguments, room, _check_part) if tasks else ():
            if isinstance(event, Failed):
                raise event.error
            batch = batches[event.key]
            numbers = shard_of[batch]
            found[numbers][batch] = unpacked(event.data)
            done += len(batch)
            if len(found[numbers]) == len(shards[numbers]):
                parts = found.pop(numbers)
                save_shard(folder, numbers, [parts[one] for one in shards[numbers]])
            yield Preparing(done, count)
        # What is left is to look through the shards, and the state of the empty caption.
        for at in encode(folder, source, encoders, count):
            yield Preparing(at, count)
        return EncodedStore(folder, count)


class _Found(Exception):
    """The source and the encoders that a store was to be made of."""

    def __init__(self, source: CaptionedSource, encoders: Encoders) -> None:
        super().__init__("the store's source and encoders")
        self.source, self.encoders = source, encoders


@dataclass(frozen=True)
class _Search(RunInputs):
    """Stops at the store that the stage asks for in this place; those before are passed by."""

    place: int
    asked: list[str] = field(default_factory=list)

    def store(self, source: CaptionedSource, encoders: Encoders, count: int) -> Generator[Preparing, None, Any]:
        yield Preparing(0, count)
        if len(self.asked) == self.place:
            raise _Found(source, encoders)
        self.asked.append(store_folder(self.run, source, encoders).name)


class EncodeWork:
    """Encodes batches in an actor of a cluster.

    Args:
        stage, config, data, run: of the training; the folders are at the same place on every machine.
        place: how many stores the stage asks for before this one.
        store: name of the store's folder, which follows from the data set and the encoders' weights.
        versions: packages that the machine must have.

    Raises:
        ClusterError: the machine has another build, or other data or weights.
        DataError, TrainingError: it lacks the data set or what earlier stages left.
    """

    def __init__(
        self,
        stage: str,
        config: TrainConfig,
        data: Path,
        run: Path,
        place: int,
        store: str,
        versions: Mapping[str, str],
    ) -> None:
        check_build(versions)
        try:
            for _ in STAGES[stage].from_run(_Search(config, data, run, place)):
                pass
        except _Found as found:
            self._source, self._encoders = found.source, found.encoders
            if store_folder(run, self._source, self._encoders).name == store:
                return
        raise ClusterError(
            f"{data} and {run} on a node",
            given="another data set, or encoders with other weights",
            expected=f"those that make {store}, as on the machine that asks",
            cure="Share both folders, or copy them to every node, to the same place.",
        )

    def __call__(self, task: str) -> Iterator[tuple[int, bytes]]:
        """One batch: the file that `unpacked` reads."""
        start, stop = json.loads(task)
        yield 0, packed(*encode_batch(self._source, self._encoders, range(start, stop)))


def packed(tensors: Mapping[str, Tensor], captions: list[str]) -> bytes:
    """A batch as the bytes of a safetensors file, which knows the sha256 of its numbers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "batch.safetensors")
        save_tensors(path, tensors, {"captions": json.dumps(captions)})
        return path.read_bytes()


def unpacked(data: bytes) -> tuple[dict[str, Tensor], list[str]]:
    """What `packed` made bytes of.

    Raises:
        CheckpointError: the bytes are damaged.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "batch.safetensors")
        path.write_bytes(data)
        return load_tensors(path), list(json.loads(read_header(path).metadata["captions"]))


def _check_part(key: int, part: int, data: bytes) -> None:
    try:
        unpacked(data)
    except CheckpointError as error:
        given = f"for batch {key}, part {part}: {error.given}"
        raise ClusterError("a worker", given=given, expected="encoded examples") from error


def encode_on_cluster(
    stage: str, config: Path, data: Path, run: Path, *, address: str, actors: int | None = None, threads: int = 0
) -> Iterator[Preparing]:
    """As `encode_data`, on the cluster at this address, with at most so many actors; errors are those of both."""
    with connected(address) as cluster:

        def inputs(settings: TrainConfig, folder: Path, into: Path) -> RunInputs:
            return SpreadInputs(settings, folder, into, stage, cluster, actors)

        yield from encode_data(stage, config, data, run, threads=threads, inputs=inputs)
