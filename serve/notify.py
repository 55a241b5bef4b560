"""Tell systemd how far the server is, where it was started by a unit of `Type=notify`.

Source: https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

from __future__ import annotations

import os
import socket

__all__ = ["notify"]


def notify(state: str) -> bool:
    """Send a state, such as `READY=1` or `STOPPING=1`.

    Returns:
        Whether there was somebody to tell; a manager that does not listen is no error of the server.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return False
    if address.startswith("@"):  # Linux's abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as messenger:
            messenger.sendto(state.encode(), address)
    except OSError:
        return False
    return True
