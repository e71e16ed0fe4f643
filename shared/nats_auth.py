"""juicefs-csi-nats-auth: makes the Secret that holds a password of NATS for each service, unless it is there already.

`kubectl apply` can't make up passwords, so this runs before nats-server does, in its pod. It may create Secrets and
nothing else: that one is there it learns from being refused.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from secrets import token_hex
from typing import Final

import structlog

from shared import log, options
from shared.errors import AlreadyExists, DriverError
from shared.kubeconfig import own_namespace
from shared.kubernetes import SECRETS, Kubernetes

SERVICES: Final = ("controller", "mountpod", "node", "tap")
"""Users of NATS, and keys of the Secret."""

_log = structlog.get_logger()


def passwords() -> dict[str, str]:
    """A new password for each service. Letters first: nats-server reads what begins with a digit as a number."""
    return {service: f"p{token_hex(24)}" for service in SERVICES}


async def ensure(*, kubeconfig: str, namespace: str, name: str) -> None:
    """Make the Secret; one that is there stays as it is.

    Raises:
        DriverError: the API server is away, or refuses.
    """
    labels = {"app.kubernetes.io/name": "juicefs-csi-driver"}
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "labels": labels}}
    async with Kubernetes.connect(kubeconfig=kubeconfig) as api:
        try:
            await api.create(SECRETS, body | {"type": "Opaque", "stringData": passwords()}, namespace=namespace)
        except AlreadyExists:
            _log.info("passwords are there", secret=name, namespace=namespace)
        else:
            _log.info("passwords made", secret=name, namespace=namespace)


def main(argv: Sequence[str] | None = None) -> int:
    """Console script: 0 when the Secret is there."""
    parser = argparse.ArgumentParser(
        prog="juicefs-csi-nats-auth", description="Make the Secret with a password of NATS for each service, once."
    )
    parser.add_argument("--secret", default="juicefs-csi-nats-auth", metavar="NAME", help="(%(default)s)")
    parser.add_argument("--namespace", default="", metavar="NAME", help="of the Secret (the service account's own)")
    parser.add_argument("--kubeconfig", default="", metavar="FILE", help="how to reach Kubernetes from outside")
    parsed = options.parse(parser, argv)
    log.configure(level="info", style="auto")
    try:
        namespace = parsed.namespace or own_namespace()
        asyncio.run(ensure(kubeconfig=parsed.kubeconfig, namespace=namespace, name=parsed.secret))
    except DriverError as error:
        _log.critical("cannot go on", cause=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
