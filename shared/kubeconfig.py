"""Where the API server is and who we are there: the service account's files in a cluster, else a kubeconfig.

kubernetes_asyncio knows every way to log in, but its packages import 700 model classes (40 MiB), so it is entered
beside its own `__init__`. Its errors quote what they choked on, users and tokens included: they are never shown.
"""

import asyncio
import logging
import ssl
import sys
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any, Final, cast

from shared.errors import InvalidRequest

_PAUSE: Final = 5.0  # seconds at least between two looks, which may start a program

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def _enter_without_models() -> None:
    """Put packages that were not executed where Python looks for the parents of what is imported below."""
    for name in ("kubernetes_asyncio", "kubernetes_asyncio.client"):
        if name not in sys.modules and (spec := find_spec(name)) is not None:
            sys.modules[name] = module_from_spec(spec)
    client = cast("Any", sys.modules["kubernetes_asyncio.client"])
    if not hasattr(client, "ApiClient"):
        client.ApiClient = object  # only in the signatures of what we don't call
        from kubernetes_asyncio.client.configuration import Configuration  # noqa: PLC0415 - needs the lines above

        client.Configuration = Configuration


_enter_without_models()

from kubernetes_asyncio.client.configuration import Configuration  # noqa: E402 - needs the line above
from kubernetes_asyncio.config import incluster_config, kube_config  # noqa: E402 - the same

# It logs the same errors that it raises.
logging.getLogger("kubernetes_asyncio").setLevel(logging.CRITICAL)


def own_namespace() -> str:
    """The namespace of our pod; `kube-system` outside of one."""
    try:
        return (SERVICE_ACCOUNT / "namespace").read_text().strip() or "kube-system"
    except OSError:
        return "kube-system"


class Access:
    """An address, a TLS context and, for each request, the token of the moment."""

    def __init__(self, kubeconfig: str) -> None:
        self._kubeconfig = kubeconfig
        self._configuration = Configuration()
        self._renewing = asyncio.Lock()
        self._renewed_at = -_PAUSE
        self.tls = ssl.create_default_context()

    @classmethod
    async def load(cls, kubeconfig: str) -> "Access":
        """From this file, or from the service account if it is empty.

        Raises:
            InvalidRequest: names the file.
        """
        access = cls(kubeconfig)
        await access._load()
        return access

    @property
    def url(self) -> str:
        return str(self._configuration.host).rstrip("/")

    @property
    def server_name(self) -> str | None:
        return self._configuration.tls_server_name

    @property
    def proxy(self) -> str | None:
        return self._configuration.proxy

    async def authorization(self) -> str:
        """For the header of that name, or empty; a service account's file is read again each minute."""
        token: str | None
        try:
            token = await self._configuration.get_api_key_with_prefix("BearerToken")
        except Exception:  # noqa: BLE001 - the file is being replaced, or empty for now: the old token may still do
            token = self._configuration.api_key.get("BearerToken")
        token = (token or "").strip()
        return token if token.isprintable() else ""  # no header can hold it, and the refusal would quote it

    async def renew(self, refused: str) -> bool:
        """Look again after the API server has refused this token; True if there is another one now."""
        clock = asyncio.get_running_loop().time
        async with self._renewing:
            if await self.authorization() == refused and clock() >= self._renewed_at + _PAUSE:
                self._renewed_at = clock()
                try:
                    await self._load()
                except InvalidRequest:
                    return False
            return await self.authorization() != refused

    async def _load(self) -> None:
        configuration = Configuration()
        source = self._kubeconfig or str(SERVICE_ACCOUNT)
        try:
            if self._kubeconfig:
                Path(self._kubeconfig).read_bytes()  # a missing file is only a warning there
                await kube_config.load_kube_config(self._kubeconfig, client_configuration=configuration)
            else:
                incluster_config.load_incluster_config(  # type: ignore[no-untyped-call]
                    configuration,
                    token_filename=str(SERVICE_ACCOUNT / "token"),
                    cert_filename=str(SERVICE_ACCOUNT / "ca.crt"),
                )
            self.tls = _tls(configuration)
        except Exception as error:  # noqa: BLE001 - whatever it is, its text is not for others
            hint = "" if self._kubeconfig else "; outside of a cluster, give a kubeconfig"
            raise InvalidRequest(f"{source}: no access to Kubernetes by it ({type(error).__name__}){hint}") from None
        finally:
            kube_config._cleanup_temp_files()  # noqa: SLF001 - keys lie there until the program ends, else
        self._configuration = configuration


def _tls(configuration: Configuration) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
