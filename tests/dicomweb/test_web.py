"""HTTP with a server that fails in every way, and what is said of it: never the path, which has a patient's UIDs in it."""

import datetime
import ipaddress
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from dicomweb_server import DicomwebServer

from pneumo_ray.dicomweb import web
from pneumo_ray.dicomweb.server import Server, authorisation
from pneumo_ray.dicomweb.web import Limits, ResourceError, ServerError, UnavailableError, Web
from pneumo_ray.errors import ConfigError, StorageError

SECRET = "/studies/1.2.840.5550173/series/1/instances/2"


@pytest.mark.parametrize("faults", [[503, 503], ["drop", 429], ["half", 500], ["hang"], ["html"]])
def test_a_request_is_repeated_until_it_succeeds(pacs, quick_web, faults):
    def read(answer):
        if answer.content_type == "text/html":
            answer.json()  # raises BrokenAnswerError
        return len(answer.json())

    pacs.faults = faults.copy()
    assert quick_web(pacs).get("/instances", read=read) == 6
    assert len(pacs.seen) == len(faults) + 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [(503, "answers 503"), ("drop", "broke off"), ("hang", "silent for 0.3 s"), ("half", "broke off")],
)
def test_after_the_last_try_the_server_is_unavailable(pacs, quick_web, capsys, fault, words):
    pacs.faults = [fault] * 3
    with pytest.raises(UnavailableError, match=words) as caught:
        quick_web(pacs, tries=3).get("/instances", [("StudyInstanceUID", "1.2.840.5550173")])
    assert len(pacs.seen) == 3
    said = str(caught.value) + capsys.readouterr().out
    assert "try 1 of 3" in said
    assert "5550173" not in said


@pytest.mark.parametrize(("status", "kind"), [(404, ResourceError), (403, ResourceError), (302, ServerError)])
def test_a_refusal_is_not_repeated(pacs, quick_web, status, kind):
    pacs.faults = [status] * 2
    with pytest.raises(kind, match=str(status)) as caught:
        quick_web(pacs).get(SECRET)
    assert len(pacs.seen) == 1
    assert "5550173" not in str(caught.value)


def test_an_unknown_server_is_named_without_the_path(quick_web, capsys):
    with DicomwebServer() as gone:
        pass
    with pytest.raises(UnavailableError, match="nobody listens there") as caught:
        quick_web(gone, tries=2).get(SECRET)
    assert "5550173" not in str(caught.value) + capsys.readouterr().out


def test_only_so_many_requests_run_at_once(pacs, quick_web):
    pacs.delay = 0.05
    asking = quick_web(pacs, at_once=3)
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda _: asking.get("/instances"), range(12)))
    assert pacs.most_at_once == 3


def test_a_large_answer_is_refused(pacs, quick_web):
    with pytest.raises(ResourceError, match="larger"):
        quick_web(pacs, max_bytes=100).get("/instances")


@pytest.mark.parametrize(("asked", "kept"), [("3", 3.0), ("3600", 7.0)])
def test_waits_requested_by_a_server_are_kept(pacs, quick_web, monkeypatch, asked, kept):
    waits: list[float] = []
    monkeypatch.setattr(web, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic))
    pacs.faults, pacs.retry_after = [503], asked
    quick_web(pacs, longest_named_wait=7.0).get("/instances")
    assert waits == [kept]


def test_waits_double_up_to_the_longest(pacs, quick_web, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(web, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic))
    monkeypatch.setattr(web, "random", SimpleNamespace(uniform=lambda low, high: high))
    pacs.faults = [503] * 4
    quick_web(pacs, first_wait=0.5, longest_wait=1.5).get("/instances")
    assert waits == [0.5, 1.0, 1.5, 1.5]


@pytest.mark.parametrize(
    "environment",
    [{"DICOMWEB_USER": "zelda", "DICOMWEB_PASSWORD": "secret word"}, {"DICOMWEB_TOKEN": "abc.def"}],
)
def test_credentials_come_from_the_environment(pacs, quick_web, monkeypatch, environment):
    pacs.authorisation = "Basic emVsZGE6c2VjcmV0IHdvcmQ=" if "DICOMWEB_USER" in environment else "Bearer abc.def"
    with pytest.raises(ServerError, match="asks for credentials; set DICOMWEB_USER"):
        quick_web(pacs).get(SECRET)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert len(quick_web(pacs).get("/instances").json()) == 6
    pacs.authorisation = "Bearer other"
    with pytest.raises(ServerError, match="refuses the credentials") as caught:
        quick_web(pacs).get(SECRET)
    assert not any(value in str(caught.value) for value in environment.values())


@pytest.mark.parametrize(
    ("url", "token", "overheard"),
    [
        ("http://pacs.hospital/dicom-web", "abc", True),
        ("http://127.0.0.1:8042/dicom-web", "abc", False),
        ("https://pacs.hospital/dicom-web", "abc", False),
        ("http://pacs.hospital/dicom-web", "", False),
    ],
)
def test_credentials_without_encryption_are_noticed(monkeypatch, url, token, overheard):
    monkeypatch.setenv("DICOMWEB_TOKEN", token)
    assert Web(Server(url)).is_overheard == overheard


def test_half_of_the_credentials_are_refused(monkeypatch):
    monkeypatch.setenv("DICOMWEB_USER", "zelda")
    with pytest.raises(ConfigError, match="only one of"):
        authorisation()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> str:
    """A certificate of this machine that nobody has signed but itself."""
    x509 = pytest.importorskip(
        "cryptography.x509", reason="cryptography, which makes the certificate, is not installed"
    )
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pacs.test")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return str(path)


def test_tls_is_verified_unless_told_otherwise(certificate, quick_web, monkeypatch, make_radiograph):
    with DicomwebServer([make_radiograph(0)], certificate) as server:
        with pytest.raises(
            ServerError, match=r"certificate of .* does not verify \(self-signed certificate\)"
        ) as caught:
            quick_web(server).get(SECRET)
        assert "5550173" not in str(caught.value)
        url = server.address.removeprefix("dicomweb+")
        assert len(Web(Server(url, verify_tls=False)).get("/instances").json()) == 1
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        assert len(quick_web(server).get("/instances").json()) == 1


def test_an_answer_that_never_ends_is_given_up(quick_web):
    """A server that sends a byte now and then is never silent, and never done."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
            while not ended.wait(0.02):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

        threading.Thread(target=drip, daemon=True).start()
        limits = Limits(tries=1, answer_seconds=0.2)
        asking = Web(Server(f"http://127.0.0.1:{listener.getsockname()[1]}"), limits)
        with pytest.raises(UnavailableError, match=r"takes longer than 0\.2 s"):
            asking.get("/instances")
        ended.set()


def test_errors_are_storage_errors_that_jobs_print():
    assert issubclass(ServerError, StorageError)
    assert issubclass(ResourceError, OSError), "a row says that its file is unreadable"
