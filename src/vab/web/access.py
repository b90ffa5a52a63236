"""Who may open a page: the host names that it answers to, the token in its link, the web server in front."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from vab.errors import VABError, first_line, naming
from vab.utils.files import atomic

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
TOKEN = re.compile(rb"[A-Za-z0-9_-]{16,200}")


class ServerError(VABError):
    """A page that cannot be served; the message is one line that says why and what to do."""


@dataclass(frozen=True)
class Access:
    """Who may open a page. Without arguments: whoever is on this machine."""

    names: frozenset[str] = LOOPBACK  # host names that are answered to, in lower case, without a port
    everywhere: bool = False  # listens on all addresses of the machine, and answers to each
    token: str | None = None  # whoever has it may come in; None: it is not asked for
    link: str | None = None  # address of a web server in front, which passes requests on
    address: str = ""  # of the page, for a browser, without the token
    port: int = 0  # of the server

    @property
    def front(self) -> str | None:
        """Host, and port unless it is the usual one, of the web server in front."""
        return plain(urlsplit(self.link).netloc) if self.link else None

    @property
    def is_encrypted(self) -> bool:
        """True if visitors come by HTTPS."""
        return self.link is not None and self.link.startswith("https:")

    @property
    def is_open(self) -> bool:
        """True if other machines can reach the page."""
        return self.link is not None or self.everywhere or not self.names & LOOPBACK

    @property
    def entrance(self) -> str:
        """The address to give away: that of the page, with the token if there is one."""
        return self.address if self.token is None else f"{self.address}/?token={self.token}"

    def notice(self, means: str) -> str | None:
        """A line that says that other machines can come in, and what that ``means``; None if they cannot."""
        if not self.is_open:
            return None
        line = f"open to every machine that reaches {self.address}: {means}"
        return line if self.is_encrypted else f"{line}. It is plain HTTP, which others on the way can read"

    def answers_to(self, host: str, local_address: str | None) -> bool:
        """True if ``host``, of a request's header, is a name of this page.

        ``local_address`` is the one that the request arrived at.
        """
        name = host_name(host)
        if name is None:
            return False
        if name in self.names or plain(host) == self.front:
            return True
        return self.everywhere and local_address is not None and _is_same_address(name, local_address)


def grant(
    listener: socket.socket,
    host: str,
    *,
    link: str | None = None,
    allow_hosts: Iterable[str] = (),
    token: Path | None = None,
    ask_token: bool = True,
) -> Access:
    """Decide who may open what is served on ``listener``, which was opened for ``host``.

    Where other machines can come in (another host than loopback, or a ``link``) a token is asked for: that in
    the file ``token``, which is made if it is not there, else a new one. ``ask_token=False`` if the pages
    have secret addresses of their own. ``ServerError`` for a file that holds no token, ``OSError`` if it
    cannot be read or made.
    """
    check_link(link)
    bound, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(bound)

    # 1. Names: of this machine for itself; for others also what it is called, and where it listens.
    names = set(LOOPBACK) if address.is_loopback or address.is_unspecified else set()
    usable = host
    if not address.is_loopback:
        machine = socket.gethostname().lower()
        names |= {machine, f"{machine}.local", host.lower(), bound}
        if address.is_unspecified:
            usable = own_address(listener.family) or machine
    for name in allow_hosts:
        found = host_name(name)
        if found is None:
            raise ServerError(f"--allow-host {name}: not a host name such as studio.example.org")
        names.add(found)

    # 2. Where a browser finds it, and what it has to know.
    access = Access(
        names=frozenset(names),
        everywhere=address.is_unspecified,
        link=link,
        address=link.rstrip("/") if link else f"http://{f'[{usable}]' if ':' in usable else usable}:{port}",
        port=port,
    )
    if not ask_token or (not access.is_open and token is None):
        return access
    return replace(access, token=secrets.token_urlsafe(24) if token is None else _kept(token))


def own_address(family: socket.AddressFamily) -> str | None:
    """The address that this machine has in its network; None if it is in none."""
    # A datagram socket is only told where it would send to: nothing is sent.
    elsewhere = "2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1"
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            found: str = probe.getsockname()[0]
            return found
    except OSError:
        return None


def check_server() -> None:
    """Raise ``ServerError`` if the web server's packages are missing (``vab[studio]``)."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ServerError(f"no web server ({error}): pip install 'vab[studio]'") from None


def check_link(link: str | None) -> None:
    """Raise ``ServerError`` for an address that no browser could open."""
    if link is not None and (urlsplit(link).scheme not in ("http", "https") or not urlsplit(link).netloc):
        raise ServerError(f"--link {link}: not an address such as https://example.org")


def listen(host: str, port: int) -> socket.socket:
    """Open a socket to serve on; port 0 is any free one. ``ServerError`` if the port cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        where = f"{host}, port {port} ({first_line(error)})"
        raise ServerError(f"cannot listen on {where}; choose others with --host and --port") from None


def plain(host: str) -> str:
    """A host and its port in lower case, without the default ports."""
    return host.lower().removesuffix(":443").removesuffix(":80")


def host_name(host: str) -> str | None:
    """The name in a ``Host`` header, without the port; None if there is none to be had."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # ValueError: the port is no number
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and "@" not in host else None


def _is_same_address(name: str, address: str) -> bool:
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(address)
    except ValueError:  # a name
        return False


def _kept(path: Path) -> str:
    """The token in a file, which is made, for its owner's eyes only, if it is not there."""
    with naming(path):
        if not path.exists():
            with atomic(path, over=False) as temporary:
                os.chmod(temporary, 0o600)
                temporary.write_text(secrets.token_urlsafe(24) + "\n", encoding="ascii")
        with path.open("rb") as file:
            content = file.read(1000).strip()
    if TOKEN.fullmatch(content) is None:
        raise ServerError(
            f"{path}: holds no token (16 to 200 letters, digits, - and _); name a file that is not there, "
            "and one is made"
        )
    return content.decode("ascii")
