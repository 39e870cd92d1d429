"""An adapter as its hub gives it away: signed, so that whoever gets it knows that it is whole.

``signature.json`` in the adapter's folder holds the digest of every other file there, which version
of which federation it is, which base it belongs to, and the hub's signature over all of that. Names
in it are compared with what is in the folder, and never used as paths.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, TypeAlias

import msgspec

from federation.messages import Digest, Name
from federation.trust.anchor import Key, framed
from federation.trust.keys import SigningKey, verify
from ffm_common.errors import AdapterInvalid, SignatureInvalid
from ffm_common.files import sha256_bytes, sha256_file, write_atomic
from ffm_common.reading import Unreadable, read_json

FILE: Final = "signature.json"
_WHAT: Final = b"adapter"
_MAX_FILE: Final = 64 * 1024
FileName: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}\Z")]


class Contents(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is signed: the federation's name, the version, its base, and the digests of the files.

    `hub` is the public key that it is signed with.
    """

    federation: Name
    hub: Key
    version: Annotated[int, msgspec.Meta(ge=0, le=2**31)]
    base: Digest
    files: Annotated[dict[FileName, Digest], msgspec.Meta(min_length=1, max_length=256)]

    @property
    def digest(self) -> str:
        """Names all files together."""
        return _digest(self.files)

    def meaning(self) -> bytes:
        """Give the bytes to be signed."""
        return framed(
            _WHAT,
            self.federation.encode(),
            bytes.fromhex(self.hub),
            str(self.version).encode(),
            bytes.fromhex(self.base),
            bytes.fromhex(self.digest),
        )


class Bundle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``signature.json`` says."""

    contents: Contents
    signature: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{128}\Z")]


def sign(folder: Path, key: SigningKey, *, federation: str, version: int, base: str) -> None:
    """Sign the adapter in a folder.

    Raises
    ------
    AdapterInvalid
        There is something in it that belongs to no adapter.
    PathUnwritable
        It does not take the file.
    """
    contents = Contents(
        federation=federation,
        hub=key.public.hex(),
        version=version,
        base=base,
        files=files_of(folder),
    )
    bundle = Bundle(contents=contents, signature=key.sign(contents.meaning()).hex())
    write_atomic(folder / FILE, msgspec.json.format(msgspec.json.encode(bundle)))


def check(folder: Path) -> Contents | None:
    """Read what is signed of the adapter in a folder, if anything is; whose key it is, is not said.

    Raises
    ------
    SignatureInvalid
        The signature is not that of the key in it.
    AdapterInvalid
        The folder holds something else than what was signed, or cannot be read.
    """
    path = folder / FILE
    try:
        bundle = read_json(path, Bundle, most=_MAX_FILE)
    except FileNotFoundError:
        return None
    except (OSError, Unreadable) as error:
        raise AdapterInvalid(f"{path}: {error}") from error
    found = bundle.contents
    if not verify(bytes.fromhex(found.hub), found.meaning(), bytes.fromhex(bundle.signature)):
        raise SignatureInvalid(f"{path} is not signed by the key that it names")
    here = files_of(folder)
    if here != found.files:
        other = sorted(set(here.items()) ^ set(found.files.items()))
        raise AdapterInvalid(f"{folder}: {other[0][0]} is not what was signed")
    return found


def files_of(folder: Path) -> dict[str, str]:
    """Give the digests of an adapter's files, but for the signature, by name.

    Raises
    ------
    AdapterInvalid
        The folder cannot be read, or holds what is no plain file.
    """
    found = {}
    try:
        for path in sorted(folder.iterdir()):
            if path.is_symlink() or not path.is_file():
                raise AdapterInvalid(f"{path} is no plain file, which an adapter has only")
            if path.name != FILE:
                found[path.name] = sha256_file(path)
    except OSError as error:
        raise AdapterInvalid(f"{folder}: {error.strerror or error}") from error
    return found


def digest_of(folder: Path) -> str:
    """Give the digest of an adapter's files, but for the signature; raises as `files_of`."""
    return _digest(files_of(folder))


def _digest(files: dict[str, str]) -> str:
    return sha256_bytes("".join(f"{files[name]}  {name}\n" for name in sorted(files)).encode())
