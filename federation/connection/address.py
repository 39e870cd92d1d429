"""Where the broker is and how it is spoken to, as a configuration file says it."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec

from federation.connection.carrier import PLAIN, Carrier, Tls
from ffm_common.config import Config
from ffm_common.errors import ConfigInvalid

TLS_PORT: Final = 8883
_PORTS: Final = {"mqtt": 1883, "mqtts": TLS_PORT, "ws": 80, "wss": 443}
_SECURE: Final = {"mqtts", "wss"}
_WEB: Final = {"ws", "wss"}
_PATH: Final = "/mqtt"
_PLAIN_PATH: Final = re.compile(r"/[\x21-\x7e]*")


class BrokerAddress(Config, frozen=True, kw_only=True):
    """Where the MQTT broker listens.

    Parameters
    ----------
    host, port
        Of a broker that is spoken to in plain TCP; port 1883 if not given.
    url
        In place of these: ``mqtt://``, ``mqtts://`` (TLS), ``ws://`` or ``wss://`` (WebSocket, path
        ``/mqtt`` if none is given), a host and, if it is not the usual one, a port.
    ca
        File of the certificates that vouch for the broker; if not given, a member trusts its hub's
        authority, and others whom this machine trusts.
    certificate, key
        Files of our own certificate and its key, for a broker that asks for one; if not given, a
        member shows its own.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None
    url: str | None = None
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """A broker's host and port, and what carries MQTT there."""

    host: str = "127.0.0.1"
    port: int = 1883
    carrier: Carrier = PLAIN

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it there."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def locate(broker: BrokerAddress, file: Path) -> Address:
    """Give the address that `file` says, with the paths in it made absolute.

    Raises
    ------
    ConfigInvalid
        The url cannot be used, or a file of a certificate or key.
    """
    try:
        return _locate(broker, file.resolve().parent)
    except ConfigInvalid as error:
        raise ConfigInvalid(f"{file}: {error.message}") from error


def _locate(broker: BrokerAddress, home: Path) -> Address:
    port = _PORTS["mqtt"] if broker.port is None else broker.port
    scheme, address = "mqtt", Address(host=broker.host, port=port)
    if broker.url is not None:
        scheme, address = _read(broker.url)
    if broker.key is not None and broker.certificate is None:
        raise ConfigInvalid("broker.key: is of no use without broker.certificate")
    named = [name for name in ("ca", "certificate") if getattr(broker, name) is not None]
    if scheme not in _SECURE:
        if named:
            raise ConfigInvalid(
                f"broker.{named[0]}: is for TLS, so broker.url must begin with mqtts:// or wss://"
            )
        return address
    tls = Tls(
        ca=home / broker.ca if broker.ca else None,
        certificate=home / broker.certificate if broker.certificate else None,
        key=home / broker.key if broker.key else None,
    )
    tls.context()  # a missing file is better said now
    return msgspec.structs.replace(
        address, carrier=msgspec.structs.replace(address.carrier, tls=tls)
    )


def _read(url: str) -> tuple[str, Address]:
    """Give a url's scheme, and its address without TLS."""
    example = "mqtts://broker.example:8883"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
    except (ValueError, UnicodeError) as error:
        raise ConfigInvalid(f"broker.url: {url!r} is no url like {example}: {error}") from error
    if parts.scheme not in _PORTS or not host or port == 0:
        schemes = ", ".join(f"{scheme}://" for scheme in _PORTS)
        raise ConfigInvalid(f"broker.url: {url!r} is none of {schemes} with a host and a port")
    if "@" in parts.netloc:
        raise ConfigInvalid("broker.url: a name or password does not belong into it")
    path = None
    if parts.scheme in _WEB:
        path = (parts.path.rstrip("/") and parts.path) or _PATH
        path += f"?{parts.query}" if parts.query else ""
    elif parts.path.strip("/") or parts.query:
        raise ConfigInvalid(f"broker.url: {url!r} has a path, which only ws:// and wss:// have")
    if parts.fragment or (path and not _PLAIN_PATH.fullmatch(path)):
        raise ConfigInvalid(f"broker.url: {url!r} holds what no url of a broker has")
    carrier = PLAIN if path is None else Carrier(path=path)
    return parts.scheme, Address(host=host, port=port or _PORTS[parts.scheme], carrier=carrier)
