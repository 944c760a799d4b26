"""compose, Kubernetes, systemd and the Containerfile confine the container as README.md says, all of them."""

import re
import shlex
from typing import Any

import pytest
import yaml

from tests.container.scripts import CONTAINER

_README = (CONTAINER / "README.md").read_text(encoding="utf-8")
_UNIT = (CONTAINER / "fedimaging-site.service").read_text(encoding="utf-8")
_COMPOSE = yaml.safe_load((CONTAINER / "compose.yaml").read_text(encoding="utf-8"))
_CLUSTER = {one["kind"]: one for one in yaml.safe_load_all((CONTAINER / "kubernetes.yaml").read_text()) if "claim" not in one}
_POD: dict[str, Any] = _CLUSTER["StatefulSet"]["spec"]["template"]["spec"]
_SITES = [name for name in _COMPOSE["services"] if name != "server"]
_STAGES = dict(re.findall(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM|\Z)", (CONTAINER / "Containerfile").read_text(), re.M | re.S))


def _flags(text: str) -> list[str]:
    """The words of the one line that makes a container's root read-only."""
    (line,) = [line for line in text.splitlines() if "--read-only " in line]
    return shlex.split(line.rstrip("\\"))


def _volumes(text: str) -> list[str]:
    return re.findall(r"--volume (\S+)", text)


def test_the_image_never_runs_as_root() -> None:
    users = re.findall(r"^USER (\S+)", _STAGES["installed"], re.M)
    assert users[-1] == "10001:10001"
    for target in ("site", "server"):
        assert "USER" not in _STAGES[target]
        assert "HEALTHCHECK" in _STAGES[target]
    assert "EXPOSE" not in _STAGES["site"]


def test_the_image_is_made_without_asking_anybody() -> None:
    installs = re.findall(r"pip install [^&]*", _STAGES["installed"])
    assert installs
    for install in installs:
        assert {"--no-index", "--no-deps"} <= set(install.split())
    assert "--require-hashes" in installs[0]


@pytest.mark.parametrize("text", [_UNIT, _README], ids=["systemd", "README"])
def test_podman_is_told_to_confine(text: str) -> None:
    flags = " ".join(_flags(text))
    for flag in ("--read-only", "--read-only-tmpfs=false", "--cap-drop all", "--security-opt no-new-privileges", "--pids-limit"):
        assert f"{flag} " in flags
    assert not re.search(r"--privileged|--cap-add|--publish|-p \d|--user", text)
    assert [volume.endswith(":ro") for volume in _volumes(text)] == [False, True]
    assert _volumes(text)[0].endswith(":/site")


def test_systemd_and_the_readme_say_the_same() -> None:
    assert _flags(_UNIT) == _flags(_README)
    assert _volumes(_UNIT) == _volumes(_README)


def test_systemd_lets_it_end_by_itself_and_reach_one_address() -> None:
    patience = int(re.findall(r"podman stop .*--time (\d+)", _UNIT)[0])
    assert patience < int(re.findall(r"^TimeoutStopSec=(\d+)", _UNIT, re.M)[0])
    address = re.findall(r"--add-host \S+:(\S+)", _UNIT)
    assert re.findall(r"^IPAddressAllow=(\S+)", _UNIT, re.M) == address
    assert "\nIPAddressDeny=any\n" in _UNIT


@pytest.mark.parametrize("name", _COMPOSE["services"])
def test_compose_confines(name: str) -> None:
    service = _COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"ports", "expose", "privileged", "cap_add", "user", "network_mode", "pid", "devices", "tmpfs"}
    writable = [volume for volume in service["volumes"] if not volume.endswith(":ro")]
    assert writable == [f"./federation/{name}:/{'server' if name == 'server' else 'site'}"]


def test_compose_has_no_way_out() -> None:
    (network,) = _COMPOSE["networks"].values()
    assert network["internal"] is True
    address = _COMPOSE["services"]["server"]["networks"]["federation"]["ipv4_address"]
    assert len(_SITES) == 4
    assert all(_COMPOSE["services"][name]["extra_hosts"] == [f"server:{address}"] for name in _SITES)


def test_kubernetes_confines() -> None:
    pod = _POD["securityContext"]
    assert (pod["runAsNonRoot"], pod["runAsUser"], pod["runAsGroup"], pod["fsGroup"]) == (True, 10001, 10001, 10001)
    assert _POD["automountServiceAccountToken"] is False
    for container in _POD["containers"]:
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert not container.keys() & {"ports", "hostPort"}
        assert [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")] == ["/site"]
    assert not _POD.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert _CLUSTER["StatefulSet"]["spec"]["replicas"] == 1


def test_kubernetes_reaches_one_address_and_is_reached_by_nobody() -> None:
    policy = _CLUSTER["NetworkPolicy"]["spec"]
    assert policy["podSelector"] == {}
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["ingress"] == []
    (alias,) = _POD["hostAliases"]
    ((to, ports),) = [(rule["to"], rule["ports"]) for rule in policy["egress"]]
    assert to == [{"ipBlock": {"cidr": f"{alias['ip']}/32"}}]
    assert ports == [{"protocol": "TCP", "port": 8443}]
