"""What is wrong with what is kept, installed or started here: disks, boards, releases, fleets."""

from __future__ import annotations

from ffm_common.errors.root import FfmError


class StorageError(FfmError):
    """The disk does not take what must be kept."""


class PathUnwritable(StorageError):
    """A file or folder cannot be written."""

    code = "path-unwritable"
    remedy = "give a folder that this user may write, with free space"
    exit_status = 2


class PathTaken(StorageError):
    """A file is there already, and nobody has said that it may be replaced."""

    code = "path-taken"
    remedy = "look at it; `--yes` replaces it"
    exit_status = 2


class DiskFull(StorageError):
    """There is too little room for what is to be written; nothing was."""

    code = "disk-full"
    remedy = "make room there, or write less"
    exit_status = 2


class FolderBusy(StorageError):
    """Another process works in the same folder."""

    code = "folder-busy"
    remedy = "end the other process, or give each its own folder"


class VersionLost(StorageError):
    """The hub's current version is damaged on its disk in every form in which it is kept."""

    code = "version-lost"
    remedy = "restore the state folder from a backup, or move it away to start anew"


class VersionUnknown(StorageError):
    """The hub has no version of that number, or does not keep what was asked of it."""

    code = "version-unknown"
    remedy = "`ffm hub versions` shows which there are"
    exit_status = 2


class LedgerBroken(StorageError):
    """A hub's or an agent's database is corrupt, or belongs to another federation."""

    code = "ledger-broken"
    remedy = "restore the state folder from a backup, or move it away to start anew"


class BoardError(FfmError):
    """A board, or its card, cannot be prepared; nothing was written."""

    exit_status = 2


class BoardOther(BoardError):
    """A board or system of this kind is not prepared in this way."""

    code = "board-other"
    remedy = "install its own system first, then run `ffm install` on it"


class BootPartitionMissing(BoardError):
    """The folder is not the boot partition of a system that this can prepare."""

    code = "boot-partition"
    remedy = (
        "write Raspberry Pi OS (October 2025 or newer) or Ubuntu for Raspberry Pi on the card, "
        "and give the folder where its first partition is mounted"
    )


class WheelMissing(BoardError):
    """The folder holds no wheel of this project, or more than one."""

    code = "wheel-missing"
    remedy = "make it with `make bundle`, and give that folder"


class NotHealthy(FfmError):
    """The agent or hub asked about does not run, or no longer moves."""

    code = "not-healthy"
    remedy = "look into its log: `journalctl -u ffm-agent` or `-u ffm-hub`, or the container's"


class ReleaseError(FfmError):
    """A release of this software is not announced, or not taken by a board."""


class ReleaseInvalid(ReleaseError):
    """What was given as a wheel is none, is damaged, or is none that a release can be made of."""

    code = "release-invalid"
    remedy = "build it again with `pip wheel . --no-deps`"
    exit_status = 2


class ReleaseOlder(ReleaseError):
    """The release is older than what runs."""

    code = "release-older"
    remedy = "nothing to do; `ffm hub release --downgrade` is taken by newer boards, too"


class ReleaseUnsuited(ReleaseError):
    """The release is for another Python or machine, or this board does not update itself."""

    code = "release-unsuited"
    remedy = "make one for this board, or install it by hand"


class ReleaseFailed(ReleaseError):
    """The release did not work on this board, which went back and does not take it again."""

    code = "release-failed"
    remedy = "mend it and announce it anew; the board's log says more"


class ExtraMissing(FfmError):
    """An optional part is not installed."""

    code = "extra-missing"
    remedy = "install the extra named in the message"
    exit_status = 2


class FleetError(FfmError):
    """A fleet on this machine did not do what it was asked."""


class FleetStalled(FleetError):
    """The fleet made no progress within its time."""

    code = "fleet-stalled"
    remedy = "look into the logs folder named in the message"
