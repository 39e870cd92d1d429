"""A small MQTT broker in pure Python (amqtt), for demonstrations where there is no mosquitto.

It loses messages that were not acknowledged when a link is cut, and speaks MQTT 3.1.1 only. The
protocol above lives with both. Run by `hub.broker` as its child.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys


async def serve(host: str, port: int) -> None:
    """Serve until the process is ended; anybody may connect."""
    from amqtt.broker import Broker

    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}"}},
            "plugins": {
                "amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}
            },
        }
    )
    await broker.start()
    await asyncio.Event().wait()


def main() -> int:
    """Run the broker; exits with 1 when it cannot start."""
    parser = argparse.ArgumentParser(description="amqtt, for demonstrations")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(serve(options.host, options.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
