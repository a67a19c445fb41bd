"""Tests that no test can ask a name server; see tests/conftest.py."""

import asyncio
import http.client
import socket

import pytest


async def look_up(name):
  await asyncio.get_running_loop().getaddrinfo(name, 80)


@pytest.mark.parametrize(
  "ask",
  [
    lambda name: socket.getaddrinfo(name, 80),
    lambda name: socket.getaddrinfo(name.encode(), 80),
    lambda name: socket.create_connection((name, 80), timeout=1),
    lambda name: http.client.HTTPConnection(name, timeout=1).connect(),
    lambda name: asyncio.run(look_up(name)),
    socket.gethostbyname,
    socket.gethostbyname_ex,
    socket.gethostbyaddr,
  ],
)
def test_looking_up_a_host_name_fails_the_test(ask):
  # Without the hook this would be a gaierror, as the name does not exist.
  with pytest.raises(pytest.fail.Exception, match=r"'nobody\.invalid'.*asks a"):
    ask("nobody.invalid")


def test_the_name_of_an_address_is_not_looked_up():
  with pytest.raises(pytest.fail.Exception, match="asks a name server"):
    socket.gethostbyaddr("192.0.2.1")


def test_names_that_need_no_name_server_are_looked_up():
  for name in ("127.0.0.1", "localhost", b"localhost", None):
    assert socket.getaddrinfo(name, 80)
  assert socket.getaddrinfo("192.0.2.1", 80)[0][4] == ("192.0.2.1", 80)
  assert socket.gethostbyname("127.0.0.1") == "127.0.0.1"
  socket.getfqdn("127.0.0.1")  # Of http.server.
