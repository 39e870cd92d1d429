"""Which work on an older version goes on when a newer one is out."""

from __future__ import annotations

from federation.messages import Manifest


def welcome(begun: Manifest, current: Manifest) -> bool:
    """Tell whether an update made from `begun` may still count while `current` is the version.

    A version that was published again (for other agents, say) is the same one if it ends in the
    same container.
    """
    behind = current.version - begun.version
    return (
        current.open
        and (begun.base, begun.spec) == (current.base, current.spec)
        and (begun.blob == current.blob if behind == 0 else 0 < behind <= current.max_staleness)
    )
