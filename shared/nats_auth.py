"""juicefs-csi-nats-auth: makes the Secret that holds a password of NATS for each service, unless it is there already.

`kubectl apply` can't make up passwords, so this runs before nats-server does, in its pod. It may create Secrets and
nothing else: whether one is there it learns from being refused.
"""

import argparse
import base64
import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

import orjson
import structlog

from shared import log, options
from shared.errors import DriverError, NotReady

SERVICES: Final = ("controller", "mountpod", "node", "tap")
"""Users of NATS, and keys of the Secret."""
_TIMEOUT: Final = 10.0  # seconds

_log = structlog.get_logger()


def passwords() -> dict[str, str]:
    """A new password for each service. Letters first: nats-server reads what begins with a digit as a number."""
    return {service: f"p{token_hex(24)}" for service in SERVICES}


def ensure(*, account: Path, server: str, namespace: str, name: str) -> bool:
    """Make the Secret; False if it was there, and stays as it is.

    Raises:
        NotReady: the API server is away. DriverError: it refuses.
    """
    data = {service: base64.b64encode(word.encode()).decode() for service, word in passwords().items()}
    labels = {"app.kubernetes.io/name": "juicefs-csi-driver"}
    body: dict[str, Any] = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "labels": labels}}
    request = urllib.request.Request(
        f"https://{server}/api/v1/namespaces/{namespace}/secrets",
        data=orjson.dumps(body | {"type": "Opaque", "data": data}),
        headers={"Authorization": f"Bearer {_read(account / 'token')}", "Content-Type": "application/json"},
    )
    trust = ssl.create_default_context(cadata=_read(account / "ca.crt"))
    try:
        urllib.request.urlopen(request, timeout=_TIMEOUT, context=trust).close()  # noqa: S310 - the same
    except urllib.error.HTTPError as refusal:
        with refusal:
            if refusal.code == HTTPStatus.CONFLICT:
                return False
        raise DriverError(
            f"the API server refuses to create Secret {namespace}/{name}: {refusal.code} {refusal.reason}"
        ) from None
    except OSError as error:
        raise NotReady(f"the API server at {server} is away: {getattr(error, 'reason', error)}") from None
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Console script: 0 when the Secret is there."""
    parser = argparse.ArgumentParser(
        prog="juicefs-csi-nats-auth", description="Make the Secret with a password of NATS for each service, once."
    )
    parser.add_argument("--secret", default="juicefs-csi-nats-auth", metavar="NAME", help="(%(default)s)")
    parser.add_argument(
        "--account",
        default="/var/run/secrets/kubernetes.io/serviceaccount",
        metavar="DIR",
        help="token, ca.crt and namespace of the service account (%(default)s)",
    )
    parsed = options.parse(parser, argv)
    log.configure(level="info", style="auto")
    account = Path(parsed.account)
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
    try:
        if not host:
            raise NotReady("KUBERNETES_SERVICE_HOST is not set: this is for a pod of Kubernetes")
        server = f"{f'[{host}]' if ':' in host else host}:{port or 443}"
        is_new = ensure(account=account, server=server, namespace=_read(account / "namespace"), name=parsed.secret)
    except DriverError as error:
        _log.critical("cannot go on", cause=str(error))
        return 1
    _log.info("passwords made" if is_new else "passwords are there", secret=parsed.secret)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise NotReady(f"{path} can't be read: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
