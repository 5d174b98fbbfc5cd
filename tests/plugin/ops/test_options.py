"""What follows `--`: tritonserver's options, and those that are the guard's."""

from __future__ import annotations

import pytest

from plugin.ops.guard import Tls
from plugin.ops.installation import ServerError
from plugin.ops.options import Options
from tests.support.paths import ROOT

FILES = ROOT / "tests/support/tls"
CERTIFICATE, KEY = str(FILES / "certificate.pem"), str(FILES / "key.pem")


def test_what_is_not_the_guards_goes_to_tritonserver_as_it_is():
    given = ("--log-verbose=1", "--backend-config", "python,x=1", "--http-thread-count=4", "--rate-limit")
    assert Options.of(given) == Options(True, True, True, None, given)


@pytest.mark.parametrize("off", ["--allow-{}=false", "--allow-{}=0", "--allow-{}=OFF"])
def test_a_port_can_be_left_closed(off):
    assert Options.of([off.format("http")]) == Options(False, True, True, None, ())
    assert Options.of([*off.format("grpc").split("="), "--x"]) == Options(True, False, True, None, ("--x",))
    assert Options.of(["--a=1", off.format("metrics"), "--b"]) == Options(True, True, False, None, ("--a=1", "--b"))


def test_tls_is_the_guards():
    options = Options.of(["--grpc-use-ssl", "--grpc-server-cert", CERTIFICATE, f"--grpc-server-key={KEY}", "--x=1"])
    assert options == Options(True, True, True, Tls(CERTIFICATE, KEY), ("--x=1",))
    more = ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={CERTIFICATE}"]
    mutual = Options.of(["--grpc-use-ssl=1", f"--grpc-server-cert={CERTIFICATE}", f"--grpc-server-key={KEY}", *more])
    assert mutual.tls == Tls(CERTIFICATE, KEY, CERTIFICATE, True)


def test_how_long_clients_connections_last_is_the_guards():
    options = Options.of(["--grpc-max-connection-age=600000", "--x", "--grpc-keepalive-permit-without-calls", "true"])
    kept = (("grpc.max_connection_age_ms", 600_000), ("grpc.keepalive_permit_without_calls", 1))
    assert (options.connections, options.rest) == (kept, ("--x",))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--grpc-max-connection-age=ten minutes"],
            "option --grpc-max-connection-age is 'ten minutes', must be a whole number from 0 to 2147483647",
        ),
        (
            ["--http-port=1"],
            "option --http-port after the -- is given, must be left out: use --http-port before the --",
        ),
        (["--grpc-address=::"], "option --grpc-address after the -- is given, must be left out: use --host before the"),
        (["--reuse-http-port=1"], "option --reuse-http-port after the -- is given, must be left out: use a port for"),
        (
            ["--allow-sagemaker=true"],
            "option --allow-sagemaker after the -- is given, must be left out: use the HTTP port, since no guard is",
        ),
        (["--allow-http=maybe"], "option --allow-http is 'maybe', must be one of: 1, true, on, 0, false, off"),
        (["--grpc-server-cert=x"], "option --grpc-server-cert is given, must come with --grpc-use-ssl=true"),
        (
            ["--grpc-use-ssl=1"],
            "option --grpc-server-cert is missing, must name a file in PEM: --grpc-use-ssl is given",
        ),
        (
            ["--grpc-use-ssl=1", "--grpc-server-cert=/nowhere", f"--grpc-server-key={KEY}"],
            "the file /nowhere of TLS cannot be read: No such file or directory",
        ),
    ],
)
def test_what_has_to_be_said_otherwise_is_an_error(given, message):
    with pytest.raises(ServerError) as caught:
        Options.of(given)
    assert str(caught.value).startswith(message)
