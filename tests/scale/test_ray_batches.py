"""`gouache paint --ray` on a cluster of several node processes of this machine, parts of which are killed."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gouache.scale.cluster import ROOM_PATIENCE
from gouache.scale.folders import open_folder

if TYPE_CHECKING:
    from tests.scale.conftest import Command, LocalCluster, Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = ("--steps", "2")
LINES = 12


def write_lines(folder: Path) -> None:
    (folder / "p.jsonl").write_text("\n".join(f'{{"prompt": "thing {k}", "seed": {k}}}' for k in range(LINES)))


def of_one_machine(run: Run, folder: Path) -> dict[str, str]:
    """Every picture's name and sha256, painted without a cluster."""
    (folder / "here").mkdir()
    assert run("paint", "--from-file", "p.jsonl", "--resume", "-o", "here", *STEPS)[0] == 0
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in (folder / "here").iterdir()}


@pytest.mark.usefixtures("s3")
def test_a_node_that_dies_in_the_middle_loses_nothing(
    run: Run, command: Command, cluster: LocalCluster, tmp_path: Path
) -> None:
    import s3fs

    s3fs.S3FileSystem().mkdir("ray")
    write_lines(tmp_path)
    place = "s3://ray/batch"
    process = command("paint", "--from-file", "p.jsonl", "--ray", cluster.address, "-o", place, *STEPS)
    assert process.stdout is not None, "it is piped"
    printed, lines = [], []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(place):
            printed.append(line.strip())
            if len(printed) == 2:
                cluster.kill(cluster.nodes[0])
    assert process.wait() == 0, "".join(lines)
    assert len(set(printed)) == len(printed) == LINES, "each picture once"
    folder = open_folder(place)
    assert {name: sha256(folder.read(name)).hexdigest() for name in folder.names()} == of_one_machine(run, tmp_path)


def test_a_lost_head_is_told_and_the_rest_painted_elsewhere(
    run: Run, command: Command, cluster: LocalCluster, tmp_path: Path
) -> None:
    write_lines(tmp_path)
    (tmp_path / "out").mkdir()
    process = command("paint", "--from-file", "p.jsonl", "--ray", cluster.address, "-o", "out", *STEPS)
    assert process.stdout is not None, "it is piped"
    lines, killed = [], False
    for line in process.stdout:
        lines.append(line)
        if line.startswith("out/") and not killed:
            cluster.kill(cluster.head)
            killed = True
    assert process.wait() == 3, "".join(lines)
    assert "What was finished is kept; run the same command again" in lines[-1]
    kept = len(list((tmp_path / "out").iterdir()))
    assert 0 < kept < LINES
    code, out, told = run("paint", "--from-file", "p.jsonl", "--resume", "-o", "out", *STEPS)
    assert (code, len(out.splitlines())) == (0, LINES - kept)
    assert f"{kept} pictures were there already" in told
    whole = {path.name: sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "out").iterdir()}
    assert whole == of_one_machine(run, tmp_path)


def test_all_nodes_that_work_are_lost_and_the_same_command_goes_on(
    run: Run, command: Command, cluster: LocalCluster, tmp_path: Path
) -> None:
    write_lines(tmp_path)
    (tmp_path / "out").mkdir()
    words = ("paint", "--from-file", "p.jsonl", "--ray", cluster.address, "-o", "out", *STEPS)
    process = command(*words)
    assert process.stdout is not None, "it is piped"
    lines, killed = [], 0.0
    for line in process.stdout:
        lines.append(line)
        if line.startswith("out/") and not killed:
            killed = time.monotonic()
            for node in cluster.nodes:
                cluster.kill(node)
    assert process.wait() == 3, "".join(lines)
    assert ROOM_PATIENCE <= time.monotonic() - killed < ROOM_PATIENCE + 90
    kept = len(list((tmp_path / "out").iterdir()))
    assert 0 < kept < LINES
    assert f"no machine that works any more, for 60 s, with {kept} of {LINES} pictures in the folder" in lines[-1]
    assert "run the same command again" in lines[-1]
    missing = lines[-1].partition("pictures of lines ")[2].partition(",")[0]
    assert missing.isdecimal()
    cluster.grow()
    again = command(*words)
    assert again.stdout is not None, "it is piped"
    told = again.stdout.read()
    assert again.wait() == 0, told
    assert f"{kept} pictures were there already" in told
    whole = {path.name: sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "out").iterdir()}
    assert whole == of_one_machine(run, tmp_path)


def test_a_task_that_kills_damages_or_fails_is_its_own_fault_alone(cluster: LocalCluster, tmp_path: Path) -> None:
    """In a process of its own, as Ray warns of itself on the way."""
    script = Path(__file__).parent / "spread_troubles.py"
    done = subprocess.run(
        [sys.executable, str(script), cluster.address, str(tmp_path)], capture_output=True, text=True, check=False
    )
    found = dict(re.findall(r"^(\d) (.*)$", done.stdout, re.MULTILINE))
    assert done.returncode == 0, done.stderr
    assert found == {
        "0": "ok",
        "1": "ClusterError a worker: given no result, though its actor was started 8 times",
        "2": "ok",
        "3": "InvalidInput three: given three",
        "4": "ok",
        "5": "ClusterError five: given always damaged",
    }


def test_an_evaluation_paints_the_same_pictures(cluster: LocalCluster) -> None:
    script = Path(__file__).parent / "paint_evaluation.py"
    done = subprocess.run([sys.executable, str(script), cluster.address], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
