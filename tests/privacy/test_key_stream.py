import pytest
import torch

from fedimaging.privacy import key_stream


def test_the_stream_is_that_of_the_standard() -> None:
    """RFC 8439, appendix A.1, test vectors 1 and 2: key and nonce of zeros, blocks 0 and 1."""
    words = torch.empty(32, dtype=torch.int32)
    key_stream.fill(bytes(32), words)
    stream = words.numpy().tobytes()
    assert stream[:16].hex() == "76b8e0ada0f13d90405d6ae55386bd28"
    assert stream[64:80].hex() == "9f07e7be5551387a98ba977c732d080d"


def test_a_longer_stream_goes_on_where_a_shorter_one_ends() -> None:
    short, long = torch.empty(5, dtype=torch.int64), torch.empty(500, dtype=torch.int64)
    key_stream.fill(b"k" * 32, short)
    key_stream.fill(b"k" * 32, long)
    assert torch.equal(short, long[:5])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_makes_the_same_bits() -> None:
    keys = [bytes(range(32)), b"\xff" * 32, bytes(32)]
    made = key_stream.on_cuda(keys, 1003, torch.device("cuda"))
    assert made is not None
    for key, row in zip(keys, made.cpu(), strict=True):
        expected = torch.empty(1003, dtype=torch.int64)
        key_stream.fill(key, expected)
        assert torch.equal(row, expected)
