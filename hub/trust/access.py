"""Who may say what at the broker: the files by which a mosquitto knows members from others.

::

    FOLDER/acl           what each may write and read, by the name in its certificate
    FOLDER/revoked.pem   certificates that count no more

mosquitto reads both anew at SIGHUP. The list of certificates keeps who was revoked from coming
back; the other takes every right from a connection that he still holds, or has kept in reserve.
A client's id at the broker is the name in its certificate, whatever it says: so nobody ends
another's session.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

import msgspec

from federation.connection.carrier import Carrier, Tls
from federation.topics import Topics
from federation.trust.anchor import BROKER_NAME
from federation.trust.keys import SigningKey
from ffm_common.files import make_folder, write_atomic
from hub import mosquitto
from hub.trust.authority import HUB_NAME, Authority
from hub.trust.members import Members

_VISIT_DAYS: Final = 10 / (24 * 60)

_ACL: Final = """\
user {hub}
topic readwrite {prefix}#

pattern write {prefix}agent/%u/state
pattern write {prefix}agent/%u/claim
pattern write {prefix}agent/%u/up/#
pattern read {prefix}agent/%u/down/#
pattern read {prefix}agent/%u/state
pattern read {prefix}agent/%u/claim
pattern read {prefix}hub/#
"""

_OPTIONS: Final = """\
allow_anonymous false
cafile {identity}/authority.pem
certfile {identity}/broker.pem
keyfile {identity}/broker.key
crlfile {folder}/revoked.pem
acl_file {folder}/acl
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
use_username_as_clientid true
"""

_PUBLIC, _PRIVATE = 0o644, 0o600
_HANDED_OVER: Final = {"authority.pem": _PUBLIC, "broker.pem": _PUBLIC, "broker.key": _PRIVATE}


class Access:
    """A federation's rules at its broker.

    Parameters
    ----------
    authority
        Vouches for the broker, the hub and the agents.
    members
        Says who is one and who was revoked.
    folder
        Takes the files.
    """

    def __init__(self, authority: Authority, members: Members, folder: Path) -> None:
        self._authority = authority
        self._members = members
        self._folder = folder
        self._topics = Topics(authority.anchor.federation)
        identity = authority.folder
        self.tls = Tls(
            ca=identity / "authority.pem",
            certificate=identity / "hub.pem",
            key=identity / "hub.key",
            name=BROKER_NAME,
        )
        """How the hub speaks to the broker."""

    def carrier(self, external: Carrier | None = None) -> Carrier:
        """Give how the hub speaks to its own broker, or to one of others."""
        if external is None:
            return Carrier(tls=self.tls)
        if external.tls is None:
            return external
        return msgspec.structs.replace(external, tls=external.tls.backed_by(self.tls))

    def options(self) -> str:
        """Give the lines of mosquitto.conf that say who may connect."""
        return _OPTIONS.format(identity=self._authority.folder, folder=self._folder)

    def write(self, held: Collection[str] = ()) -> None:
        """Write both lists as the members are now; two writes must be a second apart.

        OpenSSL goes by the date of a list, in whole seconds, where it has been given two. Members
        that are `held` may listen, and say nothing to the hub.
        """
        make_folder(self._folder)
        # Newer mosquittos warn of one that others may read.
        write_atomic(self._folder / "acl", self._acl(held).encode(), mode=_PRIVATE)
        revoked = self._authority.revocations(self._members.revoked_serials())
        write_atomic(self._folder / "revoked.pem", revoked)

    def hand_over(self, port: int) -> None:
        """Write all that a mosquitto of others needs, certificates and lists and a configuration.

        Raises
        ------
        PathUnwritable
            The folder does not take it.
        """
        self.write()
        identity, folder = self._authority.folder, self._folder
        for name, mode in _HANDED_OVER.items():
            write_atomic(folder / name, (identity / name).read_bytes(), mode=mode)
        who = _OPTIONS.format(identity=folder, folder=folder)
        text = mosquitto.configuration("0.0.0.0", port, who)  # noqa: S104
        write_atomic(folder / "mosquitto.conf", text.encode())

    @contextlib.contextmanager
    def as_agent(self, agent: str, carrier: Carrier) -> Iterator[Carrier]:
        """Give a carrier like the hub's that has an agent's name, for some minutes."""
        key = SigningKey.generate()
        made = self._authority.certify(agent, key.public, days=_VISIT_DAYS)
        with tempfile.TemporaryDirectory(prefix="ffm-") as temporary:
            files = Path(temporary) / "certificate.pem", Path(temporary) / "key.pem"
            write_atomic(files[0], made.credentials.certificate.encode())
            key.save(files[1])
            tls = msgspec.structs.replace(
                carrier.tls or self.tls, certificate=files[0], key=files[1]
            )
            yield msgspec.structs.replace(carrier, tls=tls)

    def _acl(self, held: Collection[str]) -> str:
        # A name that was let in again, with another key, is not among these.
        out = {one.agent: ["#"] for one in self._members.revoked()}
        for agent in sorted(set(held) - set(out)):
            state = self._topics.agent_state(agent)
            out[agent] = [state, f"{state.removesuffix('state')}up/#"]
        denied = [
            "".join([f"user {agent}\n", *(f"topic deny {topic}\n" for topic in topics), "\n"])
            for agent, topics in out.items()
        ]
        return "".join(denied) + _ACL.format(hub=HUB_NAME, prefix=self._topics.prefix)
