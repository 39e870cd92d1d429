"""What a mosquitto is told, ours or one of others: 2.0 and 2.1 understand all of it alike."""

from __future__ import annotations

from typing import Final

ANYBODY: Final = "allow_anonymous true\n"

# Every limit is named, since the defaults differ between 2.0 and 2.1.
_LINES: Final = """\
listener {port} {host}
{who}
set_tcp_nodelay true
persistence false
max_connections -1
max_packet_size 131072
max_inflight_messages 20
max_queued_messages 10000
max_queued_bytes 67108864
sys_interval 0
log_dest stderr
log_type error
log_type warning
log_timestamp_format %Y-%m-%dT%H:%M:%S
"""


def configuration(host: str, port: int, who: str) -> str:
    """Give the text of a mosquitto.conf.

    Parameters
    ----------
    who
        The lines that say who may connect.
    """
    return _LINES.format(host=host, port=port, who=who.strip())
