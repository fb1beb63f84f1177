"""What the studio is told at its start: where it listens, where its data lie, and its limits."""

from __future__ import annotations

import ipaddress
import re
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

import gouache
from gouache.checkpoints.hub import data_folder, models_folder
from gouache.config import Config
from gouache.pipeline.request import Safety


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value, strict=False))
    except ValueError as error:
        raise ValueError("Input should be an IP address or a network such as 10.0.0.0/8") from error


def _devices(named: str | None) -> tuple[str | None, ...]:
    return tuple(part.strip() for part in named.split(",")) if named else (None,)


LOOPBACK = ("127.0.0.1", "::1", "localhost")
Count = Annotated[int, Field(ge=1)]
ProxyAddress = Annotated[str, AfterValidator(_network)]
Seconds = Annotated[float, Field(gt=0)]


class Limits(Config):
    """Caps on what one request, one user and the whole queue may ask for. Over a cap the answer is a 4xx."""

    body_bytes: Count = 64 * 2**20
    """Bytes of one HTTP body."""
    bodies_bytes: Count = 256 * 2**20
    """Bytes of all bodies of one user that arrive or are worked on at once."""
    json_parts: Count = 100_000
    """Commas and brackets in one JSON body: what makes reading it slow. Pictures in base64 have none."""
    body_seconds: Seconds = 60.0
    """Time that one body may take to arrive, and that a client may take no byte of its answer."""
    header_seconds: Seconds = 20.0
    """Time from one answer to the whole headers of a connection's next request."""
    connections: Count = 4000
    """Connections at once; fewer where the system allows fewer open files."""
    prompt: Count = 20_000
    """Characters of a prompt."""
    prompt_parts: Count = 32
    """Parts of a prompt joined by AND, each of which is a run of the network of its own."""
    pixels: Count = 4 * 2**20
    """Pixels of one painted picture, second pass included."""
    picture_pixels: Count = 64 * 2**20
    """Pixels of all pictures that one request names: starting picture, mask, control pictures."""
    steps: Count = 150
    """Denoising steps of one pass."""
    count: Count = 32
    """Pictures of one job."""
    work: Count = 4 * 2**30
    """Pixels times steps times pictures of one job; half as much again for each ControlNet."""
    queue: Count = 2000
    """Jobs that wait."""
    queue_per_user: Count = 1500
    """Jobs of one user that wait."""
    jobs_per_minute: Count = 1200
    """Jobs that one token may hand in in a minute."""
    streams: Count = 200
    """Event streams that one user may follow at once."""
    requests_per_minute: Count = 120_000
    """Requests of one token in a minute."""
    failed_logins_per_minute: Count = 10
    """Wrong tokens or passwords from one address in a minute."""
    free_bytes: Count = 512 * 2**20
    """Room on the disk that uploads and jobs must leave."""


class Settings(Config):
    """One studio."""

    data: Path
    """Folder of images, attachments and, without other URLs, the store; by default the user's data folder."""
    store: str | None = None
    """SQLAlchemy URL of the store, such as postgresql+psycopg://...; by default SQLite in the data folder."""
    files: str | None = None
    """s3://BUCKET/PREFIX of an object store for pictures and attachments; by default they lie in the data folder."""
    models: tuple[Path, ...] = ()
    """Folder with models."""
    default_model: str | None = None
    """Model of requests that name none; by default the shipped one."""
    model_aliases: tuple[str, ...] = (
        *("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "gpt-image-2"),
    )
    """Name by which OpenAI's clients mean the default model, instead of OpenAI's names; an empty one allows none."""
    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback needs an account or a token."""
    port: Annotated[int, Field(ge=0, le=65535)] = 7860
    """Port to listen on; 0 takes a free one."""
    allowed_hosts: tuple[str, ...] = ()
    """Host name, beside loopback and IP addresses, under which the studio is reached, for example behind a proxy."""
    behind_proxy: tuple[ProxyAddress, ...] = ()
    """Address or network of a proxy that speaks TLS: its X-Forwarded-For and X-Forwarded-Proto count, nobody else's."""
    device: str | None = None
    """cpu, cuda, cuda:0 or mps; several with commas are dealt out to the workers. By default a GPU if available."""
    dtype: Literal["float32", "float16", "bfloat16", "auto"] | None = None
    """float32, float16, bfloat16 or auto: on a CPU bfloat16 for large models where it is faster, else float32; on a GPU
    float16. By default auto."""
    engine: Literal["torch", "openvino", "openvino-int8", "compile", "auto"] = "torch"
    """torch, openvino, openvino-int8, compile or auto. What it can't do is an error; auto leaves it to torch."""
    workers: Annotated[int, Field(ge=0, le=1024)] = Field(default_factory=lambda given: len(_devices(given["device"])))
    """Worker processes to start and supervise, by default one for each device; a server has 0 if they run elsewhere."""
    model_memory: Count = 8 * 2**30
    """Bytes of loaded models a worker keeps."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads of a worker; 0 leaves the choice to torch."""
    lease: Seconds = 30.0
    """Seconds after which a silent worker's job goes to another."""
    grace: Seconds = 10.0
    """Seconds that a stop leaves the running job to finish; after them it goes back into the queue."""
    wait: Seconds = 590.0
    """Longest time that A1111's and OpenAI's blocking calls wait; the job itself goes on."""
    page: bool = True
    """Serve the web page at /."""
    watermark: str | None = None
    """Text to hide in every image whose request names none; at most 32 bytes."""
    safety: Safety = "off"
    """off, blur or block: the least done to images that the safety checker finds; a request may ask for more."""
    safety_checker: Path | None = None
    """Weights of the safety checker, in diffusers' layout; by default those beside each model."""
    search_tower: Path | None = None
    """Towers that `gouache train clip` left, for search by meaning; by default what the shipped model has."""
    admins: tuple[str, ...] = ("admin",)
    """User who may train and download models, beside admin; without accounts the one user may."""
    limits: Limits = Field(default_factory=Limits)

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """Folders in which models lie; those that were trained here are in the data folder."""
        return (*self.models, self.data / "models")

    @property
    def uploads_folder(self) -> Path:
        """Where models that are sent to it go: the models folder of this machine, where it is one of the studio's."""
        own = models_folder()
        return own if own.resolve() in {path.resolve() for path in self.model_folders} else self.data / "models"

    @property
    def devices(self) -> tuple[str | None, ...]:
        """The devices that are dealt out to the workers."""
        return _devices(self.device)

    @property
    def wildcards(self) -> Path:
        """Folder of `NAME.txt` files, one choice a line, for `__NAME__` in prompts."""
        return self.data / "wildcards"

    @property
    def store_url(self) -> str:
        """Where the store is."""
        return self.store or f"sqlite:///{self.data / 'studio.sqlite3'}"

    def hide_places(self, text: str) -> str:
        """A text without the folders of this server: where its files lie is nobody's business outside."""
        if self.files is not None:
            text = text.replace(self.files, "...").replace(self.files.partition("://")[2], "...")
        named = (self.search_tower, self.safety_checker, models_folder(), data_folder(), Path.home())
        program = (Path(gouache.__file__).parent, Path(sys.prefix), Path(tempfile.gettempdir()))
        known = [place for place in (*self.model_folders, self.data, *program, *named) if place is not None]
        places = {path for place in known for path in (place, place.absolute(), place.resolve())}
        for place in sorted(map(str, places), key=len, reverse=True):
            if len(place) > 1:
                text = re.sub(rf"(?<![\w./-]){re.escape(place)}(?![\w-])", "...", text)
        return text

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK
