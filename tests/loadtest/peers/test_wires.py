import json

import pytest

from loadtest.peers.catalog import PEERS
from loadtest.peers.wires import INFINITY, labelled
from loadtest.wire import CLASSIFY, Reading


def test_every_format_is_read():
    ours = {"data": [{"label": "good", "point": "n1-l6", "escalated": True}]}
    assert CLASSIFY.read(ours) == Reading("good", "n1-l6", True)
    vllm = {"data": [{"index": 0, "label": "good", "probs": [0.1, 0.9], "num_classes": 2}]}
    assert CLASSIFY.read(vllm) == Reading("good")
    infinity = {"data": [[{"score": 0.1, "label": "bad"}, {"score": 0.9, "label": "good"}]]}
    assert INFINITY.read(infinity) == Reading("good")
    assert labelled("/predict").read({"label": "good", "score": 0.9}) == Reading("good")


@pytest.mark.parametrize("wire", [CLASSIFY, INFINITY, labelled("/x")])
@pytest.mark.parametrize("answer", [[], {}, {"data": []}, {"detail": "no"}, "text", None])
def test_anything_else_is_no_answer(wire, answer):
    with pytest.raises((KeyError, IndexError, TypeError, ValueError)):
        wire.read(answer)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.key)
def test_every_peer_is_asked_in_whole_requests_and_has_its_pinned_requirements(peer):
    for setting in peer.settings:
        head, _, body = setting.wire.request("127.0.0.1", 80, 'a "quoted" façade').partition(b"\r\n\r\n")
        assert head.startswith(f"POST {setting.wire.path} HTTP/1.1\r\n".encode())
        assert f"content-length: {len(body)}".encode() in head
        assert 'a "quoted" façade' in str(json.loads(body))
    lines = [line for line in peer.requirements.read_text().splitlines() if line and not line.startswith("#")]
    assert lines
    assert all("==" in line for line in lines)
