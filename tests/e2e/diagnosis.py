"""What is worth reading when a case failed: its pods, events, clients, and what the services said meanwhile."""

import time

from tests.e2e.case import Case
from tests.e2e.cluster import SYSTEM, kubectl

_SERVICES = ("statefulset/juicefs-csi-controller", "daemonset/juicefs-csi-node", "deployment/juicefs-csi-mountpod")
_SYSTEM = ("--namespace", SYSTEM)


async def diagnose(case: Case, *, since: float) -> str:
    seconds = f"{int(time.time() - since) + 1}s"
    mine = ("--namespace", case.namespace)
    tap = ("juicefs-csi-tap", "--no-follow")
    commands = [
        ("get", "pods,pvc,events", *mine, "--output", "wide"),
        ("describe", "pods,pvc", *mine),
        ("get", "pods", *_SYSTEM, "--output", "wide"),
    ]
    for volume in case.volumes:
        selector = ("--selector", f"volume-id={volume}")
        commands += [
            ("describe", "pods", *_SYSTEM, *selector),
            ("logs", *_SYSTEM, *selector, "--all-containers", "--tail=40"),
            ("exec", *_SYSTEM, "deployment/juicefs-csi-tap", "--", *tap, "--since", seconds, "--volume", volume),
        ]
    commands += [("logs", *_SYSTEM, service, "--all-pods", f"--since={seconds}", "--tail=60") for service in _SERVICES]
    parts = [f"--- kubectl {' '.join(command)}\n{await kubectl(*command, check=False)}" for command in commands]
    mounts = "\n".join(f"{entry.mount_point} {entry.device}" for entry in await case.cluster.mounts())
    return "\n".join([*parts, f"--- mounts of JuiceFS\n{mounts}"])
