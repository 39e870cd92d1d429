"""What a lossy codec has not sent yet, kept between versions; used up and replaced exactly once.

The journal decides: the residual that counts is that of the version whose update it calls trained.
So a kill between "in the outbox" and "in the journal" has the version trained again from the
residual it was trained from before, which gives the same update. An update that is refused or
comes too late is lost as with any other codec, and no more than it: what it did not carry stays.
"""

from __future__ import annotations

from pathlib import Path

from ffm_common.errors import PathUnwritable
from ffm_common.files import make_folder, sync_folder


class Residuals:
    """One file per version, of which all but one are soon deleted.

    Parameters
    ----------
    folder
        On the file system of the worker's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = make_folder(folder)

    def of(self, trained: str) -> Path:
        """Give the file of a version by its blob ("" for none); it need not be there."""
        return self._folder / f"{trained or 'none'}.safetensors"

    def put(self, blob: str, made: Path) -> None:
        """Move a new residual in; it counts once the journal says so.

        Raises
        ------
        PathUnwritable
            The disk does not take it.
        """
        try:
            made.replace(self.of(blob))
            sync_folder(self._folder)
        except OSError as error:
            raise PathUnwritable(f"cannot write {self.of(blob)}: {error.strerror}") from error

    def keep_only(self, trained: str) -> None:
        """Delete the residuals of other versions."""
        for path in self._folder.iterdir():
            if path != self.of(trained):
                path.unlink()
