"""The files under `deploy/` are what Kubernetes takes, and say what the command line knows. Nothing is applied."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gouache.cli.main import LazyGroup, load_command
from gouache.serve.settings import Settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
KUBERNETES = "1.33"
BUILT_IN = {"v1", "apps/v1"}
PORT = Settings.model_fields["port"].default


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def kept(name: str) -> list[dict[str, Any]]:
    return [one for one in documents(name) if one["apiVersion"] in BUILT_IN]


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod that any part describes."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for part in value.values():
            yield from pods(part)
    elif isinstance(value, list):
        for part in value:
            yield from pods(part)


ALL = [*documents("studio.yaml"), *documents("ray.yaml")]
CONTAINERS = [container for pod in pods(ALL) for container in pod["containers"]]


def parsed(command: list[str]) -> dict[str, Any]:
    """What the command line makes of a command; it fails on an option that it does not know."""
    assert command[0] == "gouache", command
    name, rest = command[1], command[2:]
    found = load_command(name, LazyGroup.homes[name][0])
    context = found.make_context(name, rest, resilient_parsing=False)
    return dict(context.params)


@pytest.mark.parametrize("document", kept("studio.yaml"), ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_every_object_is_one_that_kubernetes_takes(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("pod", list(pods(documents("ray.yaml"))), ids=lambda pod: pod["containers"][0]["name"])
def test_every_pod_of_ray_is_one_that_kubernetes_takes(pod: dict[str, Any]) -> None:
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
    kubernetes_validate.validate(whole, KUBERNETES, strict=True)


def test_what_is_no_object_is_noticed() -> None:
    bad = {**kept("studio.yaml")[1], "spec": {"ports": [{"port": "many"}], "slector": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(bad, KUBERNETES, strict=True)


def test_commands_are_understood() -> None:
    commands = [one["command"] for one in CONTAINERS if "command" in one]
    commands += [shlex.split(one["spec"]["entrypoint"]) for one in ALL if "entrypoint" in one.get("spec", ())]
    assert sorted(command[1] for command in commands) == ["serve", "worker", "worker"]
    server, worker, on_ray = (parsed(command) for command in commands)
    assert (server["port"], server["workers"], server["host"]) == (PORT, 0, "0.0.0.0")
    assert (worker["workers"], worker["device"], worker["ray"]) == (1, "cuda", None)
    assert (on_ray["ray"], on_ray["workers"], on_ray["gpus"]) == ("auto", 2, 1.0)


def test_variables_ports_and_names_fit_together() -> None:
    (secret,) = (one for one in ALL if one["kind"] == "Secret")
    known = {"GOUACHE_STORE", "GOUACHE_FILES", "GOUACHE_TOKEN"}
    assert {name for name in secret["stringData"] if name.startswith("GOUACHE")} == known
    for container in CONTAINERS:
        if container["image"] == "gouache":
            assert container["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"]}}]
    services = {one["metadata"]["name"]: one for one in ALL if one["kind"] == "Service"}
    assert f"@{next(name for name in services if name == 'postgres')}/" in secret["stringData"]["GOUACHE_STORE"]
    assert services["gouache"]["spec"]["ports"][0]["targetPort"] == PORT
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in ALL if "template" in one.get("spec", ())]
    assert all(service["spec"]["selector"] in labels for service in services.values())
    claims = {one["metadata"]["name"] for one in ALL if one["kind"] == "PersistentVolumeClaim"}
    for pod in pods(ALL):
        volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
        named = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
        assert named <= claims
        mounted = {mount["name"] for one in pod["containers"] for mount in one.get("volumeMounts", ())}
        assert mounted <= {*volumes, "data"}


def test_the_image_holds_what_its_commands_need() -> None:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    (extras,) = re.findall(r'"\.\[([a-z,-]+)\]"', text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"serve", "postgres", "scale"} <= set(extras.split(",")) <= set(project["optional-dependencies"])
    for name in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / part).exists() for part in name.split())
    (command,) = re.findall(r"^CMD (\[.+\])$", text, re.MULTILINE)
    assert parsed(yaml.safe_load(command))["host"] == "0.0.0.0"
    assert f"EXPOSE {PORT}" in text
    (version,) = (one["spec"]["rayClusterSpec"]["rayVersion"] for one in documents("ray.yaml"))
    assert f"ray=={version}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
