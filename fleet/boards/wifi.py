"""Wi-Fi at the first boot. The password is never an argument: those are seen by everybody."""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from ffm_common.errors import ConfigInvalid

VARIABLE: Final = "FFM_WIFI_PASSWORD"
_COUNTRY: Final = re.compile(r"[A-Z]{2}")
_KEY: Final = re.compile(r"[0-9a-fA-F]{64}")
_SSID_BYTES: Final = 32
_ROUNDS: Final = 4096


class Wifi(msgspec.Struct, frozen=True, kw_only=True):
    """A network, and the key to it.

    Parameters
    ----------
    key
        The pre-shared key, 64 hex digits. It opens this network as the password does, but is not
        the password, which people use elsewhere, too.
    country
        ISO 3166 code; without it many boards keep their radio off.
    """

    ssid: str
    key: str
    country: str

    def netplan(self) -> dict[str, Any]:
        """Give what netplan reads; a password of 64 hex digits is a key to it."""
        return {
            "wlan0": {
                "dhcp4": True,
                "optional": True,
                "regulatory-domain": self.country,
                "access-points": {self.ssid: {"password": self.key}},
            },
        }


def wifi(ssid: str, country: str | None, file: Path | None) -> Wifi:
    """Ask for the password where it was not given, and make the key from it.

    Parameters
    ----------
    file
        Holds the password in its first line; None: it is in the environment, or asked for.

    Raises
    ------
    ConfigInvalid
        A name, country or password that there cannot be.
    """
    if not 1 <= len(ssid.encode()) <= _SSID_BYTES:
        raise ConfigInvalid(f"--wifi: {ssid!r} is not 1 to {_SSID_BYTES} bytes")
    if country is None or not _COUNTRY.fullmatch(country):
        raise ConfigInvalid("--wifi-country: give two capitals, such as DE")
    return Wifi(ssid=ssid, key=key_of(ssid, _password(file)), country=country)


def key_of(ssid: str, password: str) -> str:
    """Give the pre-shared key of WPA2 (IEEE 802.11-2016, J.4.1): PBKDF2, SHA-1, 4096 rounds."""
    if _KEY.fullmatch(password):
        return password.lower()
    if not (password.isascii() and password.isprintable() and 8 <= len(password) <= 63):  # noqa: PLR2004
        raise ConfigInvalid("a Wi-Fi password has 8 to 63 printable ASCII characters")
    return hashlib.pbkdf2_hmac("sha1", password.encode(), ssid.encode(), _ROUNDS, 32).hex()


def _password(file: Path | None) -> str:
    if file is not None:
        try:
            return file.read_text().split("\n", 1)[0].rstrip("\r")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigInvalid(f"--wifi-password-file: cannot read {file}: {error}") from error
    if VARIABLE in os.environ:
        return os.environ[VARIABLE]
    if not sys.stdin.isatty():
        raise ConfigInvalid(
            "there is nobody to ask for the Wi-Fi password",
            remedy=f"give --wifi-password-file, or set {VARIABLE}",
        )
    return getpass.getpass("Wi-Fi password: ")
