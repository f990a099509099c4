"""The manifests are valid for several versions of Kubernetes, and what they start is what the image understands."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oinetd.config import parse_config
from tests.packages.building import ROOT, run

yaml = pytest.importorskip("yaml")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

FOLDER = ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.28", "1.31", "1.34")
OVERLAYS = ("base", "overlays/cluster-internal", "overlays/daemonset")
Object = dict[str, Any]


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def patched(thing: Object, operations: list[Object]) -> Object:
    """RFC 6902: add, replace and remove; a path has to be there, as kustomize asks for."""
    thing = copy.deepcopy(thing)
    for operation in operations:
        *way, last = operation["path"].lstrip("/").split("/")
        place: Any = thing
        for step in way:
            place = place[int(step) if isinstance(place, list) else step]
        if operation["op"] != "add":
            assert last in place, operation
        if operation["op"] == "remove":
            del place[last]
        else:
            place[last] = operation["value"]
    return thing


def rendered(folder: Path) -> Iterator[Object]:
    """What `kubectl kustomize` prints, for the parts of its language that these files use."""
    said = load(folder / "kustomization.yaml")
    unknown = set(said) - {"apiVersion", "kind", "namespace", "labels", "resources", "images", "patches", "replicas"}
    assert not unknown
    things: list[Object] = []
    for name in said["resources"]:
        things += rendered(folder / name) if (folder / name).is_dir() else [load(folder / name)]
    for patch in said.get("patches", ()):
        content = load(folder / patch["path"])
        target = patch.get("target") or {"kind": content["kind"], "name": content["metadata"]["name"]}
        hit = [t for t in things if (t["kind"], t["metadata"]["name"]) == (target["kind"], target["name"])]
        assert len(hit) == 1, f"{patch} changes nothing"
        place = things.index(hit[0])
        if isinstance(content, list):
            things[place] = patched(hit[0], content)
        else:
            assert content["$patch"] == "delete"
            del things[place]
    for replicas in said.get("replicas", ()):
        (one,) = (t for t in things if t["kind"] == "Deployment" and t["metadata"]["name"] == replicas["name"])
        one["spec"]["replicas"] = replicas["count"]
    return iter(things)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", OVERLAYS)
def test_they_are_valid(name: str, version: str) -> None:
    things = list(rendered(FOLDER / name))
    assert {"ConfigMap", "NetworkPolicy"} < {thing["kind"] for thing in things}
    for thing in things:
        kubernetes_validate.validate(thing, version, strict=True)


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_real_kustomize_makes_the_same_of_them(name: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is missing (Debian: apt install kubectl)")
    things = list(yaml.safe_load_all(run("kubectl", "kustomize", FOLDER / name)))
    for thing in things:
        for version in VERSIONS:
            kubernetes_validate.validate(thing, version, strict=True)
    specs = {(thing["kind"], thing["metadata"]["name"]): thing.get("spec", thing.get("data")) for thing in things}
    ours = {(thing["kind"], thing["metadata"]["name"]): thing for thing in rendered(FOLDER / name)}
    assert set(specs) == set(ours)
    for key in specs.keys() & {("Deployment", "oinetd"), ("DaemonSet", "oinetd")}:
        theirs, own = (spec["template"]["spec"] for spec in (specs[key], ours[key]["spec"]))
        (container,), (expected,) = theirs["containers"], own["containers"]
        assert container | {"image": ""} == expected | {"image": ""}  # its tag comes from `images`
        assert theirs["securityContext"] == own["securityContext"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_pod_has_no_rights(name: str) -> None:
    (pod,) = (
        t["spec"]["template"]["spec"] for t in rendered(FOLDER / name) if t["kind"] in ("Deployment", "DaemonSet")
    )
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not [mount for mount in container["volumeMounts"] if "subPath" in mount]


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_configuration_is_one_and_fits_the_pod(name: str) -> None:
    things = {thing["kind"]: thing for thing in rendered(FOLDER / name)}
    config = parse_config(things["ConfigMap"]["data"]["oinetd.conf"])
    assert config.watch
    pod = (things.get("Deployment") or things["DaemonSet"])["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert [rule.bind.port for rule in config.rules] == [port["containerPort"] for port in container["ports"]]
    (sleep,) = (w for w in container["lifecycle"]["preStop"]["exec"]["command"] if "sleep" in w)
    waits_s = float(sleep.partition("sleep(")[2].rstrip(")"))
    readiness = container["readinessProbe"]
    assert waits_s > readiness["periodSeconds"] * readiness["failureThreshold"]
    assert waits_s + config.drain_timeout_s < pod["terminationGracePeriodSeconds"]
