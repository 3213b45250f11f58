"""What the page is served with: the network of the weights that there are now."""

import socket

import pytest

from datasets.files import checksum
from engine import provenance
from engine.config import shipped_weights
from web import serve


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """The weights that were exported, in order; as by the real export, the model has their checksum in it."""
    calls = []

    def run(command, **_):
        weights, model = (command[command.index(flag) + 1] for flag in ("--weights", "--output"))
        calls.append(weights)
        (tmp_path / "web" / "model.onnx").write_bytes(
            b"..." + checksum(weights).encode() + provenance.network_code().encode()
        )
        assert model == str(tmp_path / "web" / "model.onnx")

    shipped = tmp_path / shipped_weights("xyscannet_t")
    shipped.parent.mkdir(parents=True)
    shipped.write_bytes(b"weights")
    (tmp_path / "web" / "vendor").mkdir(parents=True)
    for name in serve.RUNTIME:
        (tmp_path / "web" / "vendor" / name).touch()
    monkeypatch.setattr(serve, "WEB", tmp_path / "web")
    monkeypatch.setattr(serve.subprocess, "run", run)
    return calls


def test_a_network_is_exported_again_when_its_code_changes(exported, monkeypatch):
    serve.prepare()
    monkeypatch.setattr(provenance, "network_code", lambda: "edited")
    for _ in range(2):
        serve.prepare()
    assert len(exported) == 2


def test_a_network_is_exported_again_when_its_weights_change(exported, tmp_path):
    shipped, other = tmp_path / shipped_weights("xyscannet_t"), tmp_path / "other.pth"
    for _ in range(2):
        serve.prepare()
    assert exported == [str(shipped)]
    shipped.write_bytes(b"newer weights")
    serve.prepare()
    other.write_bytes(b"other weights")
    for _ in range(2):
        serve.prepare(other)
    serve.prepare()
    assert exported == [str(shipped), str(shipped), str(other), str(shipped)]


def test_weights_that_are_missing_are_named(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.pth"):
        serve.prepare(tmp_path / "missing.pth")


def test_a_port_that_is_taken_or_none_is_named(exported, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve.main(["--port", str(port)]) == 2
    assert f"port {port}: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        serve.main(["--port", "99999"])
