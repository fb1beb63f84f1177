"""Every environment variable that gouache reads, and what it means; the reference's page is made from this table."""

from __future__ import annotations

import os
from enum import StrEnum


class Variable(StrEnum):
    """An environment variable. A member is its name: ``os.environ.get(Variable.DATA)``.

    Attributes:
        does: what it decides.
        values: what it may hold.
        otherwise: what holds where it isn't set, or is empty.
    """

    does: str
    values: str
    otherwise: str

    def __new__(cls, name: str, does: str, values: str, otherwise: str) -> Variable:
        """A member: the name, and what the table says about it."""
        made = str.__new__(cls, name)
        made._value_ = name
        made.does, made.values, made.otherwise = does, values, otherwise
        return made

    DATA = (
        "GOUACHE_DATA",
        "The folder where gouache keeps models and the server its store. `gouache serve --data` stands above it.",
        "a folder",
        "`gouache` in the user's data folder: `$XDG_DATA_HOME`, else `~/.local/share`, on Linux",
    )
    MODELS = (
        "GOUACHE_MODELS",
        "The folder where models are looked for by name.",
        "a folder",
        "`models` in the data folder",
    )
    OFFLINE = (
        "GOUACHE_OFFLINE",
        "Forbids gouache every connection to a model hub or package registry. What would need one is an error.",
        "`1`, `yes` or `true`; `0`, `no`, `false` or `off` are as if it weren't set",
        "the network is used by commands that download, and by no others",
    )
    PROGRESS = (
        "GOUACHE_PROGRESS",
        "Whether a notebook shows a bar while something is painted, trained or downloaded.",
        "`off`, `0`, `no` or `false` for none",
        "a bar",
    )
    FONT = (
        "GOUACHE_FONT",
        "The font of the words on sheets (`gouache grid`). Where it lacks a character of theirs, another may be taken.",
        "a file `.ttf`, `.ttc`, `.otf` or `.otc`",
        "Pillow's own font, else the one on this machine that has most of the characters",
    )
    MAX_PIXELS = (
        "GOUACHE_MAX_PIXELS",
        "How many pixels a picture that is read may have. A larger one is refused before it is decoded.",
        "a whole number above 0",
        "67108864 (64 Mi)",
    )
    SAFETY_CHECKER = (
        "GOUACHE_SAFETY_CHECKER",
        "The safety checker of `--safety blur` and `--safety block`. `gouache serve --safety-checker` stands above it.",
        "a folder or a weight file in diffusers' layout",
        "`safety_checker` beside the model",
    )
    STORE = (
        "GOUACHE_STORE",
        "The database of `gouache serve`, `worker` and `jobs`. Their `--store` stands above it.",
        "a URL, such as `postgresql+psycopg://user@host/gouache`",
        "a file of SQLite in the data folder",
    )
    FILES = (
        "GOUACHE_FILES",
        "Where `gouache serve`, `worker` and `jobs` keep pictures and attachments. Their `--files` stands above it.",
        "the URL of an object store, such as `s3://bucket/studio`",
        "a folder in the data folder",
    )
    TOKEN = (
        "GOUACHE_TOKEN",
        "A token of the user `admin` for as long as `gouache serve` runs; it isn't stored.",
        "a secret of 16 characters or more",
        "only accounts of the store sign in; without any, the server listens on the loopback address alone",
    )
    HF_ENDPOINT = ("HF_ENDPOINT", "The address of the model hub.", "a URL", "`https://huggingface.co`")
    HF_TOKEN = (
        "HF_TOKEN",
        "Who is asking the hub, for repositories that aren't public. `gouache pull --token` stands above it.",
        "an access token of the hub",
        "who signed in with the hub's own command; else nobody: public repositories only",
    )
    HF_HUB_CACHE = (
        "HF_HUB_CACHE",
        "The hub's cache, which gouache shares with every other program that downloads from it.",
        "a folder",
        "`hub` in `HF_HOME`",
    )
    HF_HOME = ("HF_HOME", "The folder around the hub's cache.", "a folder", "`~/.cache/huggingface`")
    HF_HUB_OFFLINE = (
        "HF_HUB_OFFLINE",
        "Forbids the hub's own library to use the network, and gouache to read a data set from the hub.",
        "`1`, `yes`, `true` or `on`",
        "the network is used by commands that download",
    )
    RAY_ADDRESS = (
        "RAY_ADDRESS",
        "The cluster that `--ray` without an address joins.",
        "`HOST:PORT` of its head",
        "a cluster that runs on this machine, else one is started for the command",
    )
    MALLOC_ARENA_MAX = (
        "MALLOC_ARENA_MAX",
        "How many heaps glibc's malloc shares among the threads of the server and of its workers.",
        "a whole number above 0",
        "2; elsewhere glibc gives eight for each core, and keeps what is freed in them",
    )
    OMP_WAIT_POLICY = (
        "OMP_WAIT_POLICY",
        "Whether torch's threads sleep or spin while they wait for each other; OpenMP reads it.",
        "`passive` (sleep) or `active` (spin)",
        "they spin; for a command that begins while as many programs run as there are processors, they sleep",
    )
    CXX = (
        "CXX",
        "The C++ compiler that `--engine compile` calls; torch reads it.",
        "a program's name or path",
        "`g++`, on macOS `clang++`, on Windows `cl`",
    )
    TORCHINDUCTOR_CACHE_DIR = (
        "TORCHINDUCTOR_CACHE_DIR",
        "Where `--engine compile` keeps compiled programs; torch reads it.",
        "a folder",
        "`gouache/compiled` in the user's cache folder",
    )
    XDG_CACHE_HOME = (
        "XDG_CACHE_HOME",
        "The folder around gouache's caches: weight files' hashes, `gouache/sha256.json`, and what engines keep.",
        "a folder",
        "`~/.cache`",
    )
    XDG_DATA_HOME = (
        "XDG_DATA_HOME",
        "The user's data folder on Linux: fonts are looked for in it, and gouache's data folder is in it.",
        "a folder",
        "`~/.local/share`",
    )

    @property
    def is_on(self) -> bool:
        """Whether a switch is set to anything but nothing or one of the words that say no."""
        return bool(os.environ.get(self, "").strip()) and not self.is_off

    @property
    def is_off(self) -> bool:
        """Whether a switch is set to one of the words that say no: ``0``, ``false``, ``no``, ``off``, in any case."""
        return os.environ.get(self, "").strip().lower() in _NO


_NO = ("0", "false", "no", "off")


def sleep_where_crowded() -> None:
    """Let waiting threads of torch sleep, unless the user has said otherwise, where other programs want the processors.

    Threads that spin take the time that the others need to come to where they wait: one picture of the shipped model
    took 18 processor seconds beside nine programs on two cores, and 3.4 with this. Alone it would cost: a warm picture
    takes twice as long then. To be called before torch is imported.
    """
    if Variable.OMP_WAIT_POLICY in os.environ or not hasattr(os, "getloadavg"):
        return
    if os.getloadavg()[0] >= (os.cpu_count() or 1):
        os.environ[Variable.OMP_WAIT_POLICY] = "passive"
