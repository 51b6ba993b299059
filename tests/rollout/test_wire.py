"""Headers and replies: what comes out is what went in, or Malformed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.wire import (
    HEADER_BYTES,
    PROTOCOL,
    REPLY_BYTES,
    Answer,
    Greeting,
    Header,
    Kind,
    Malformed,
    Reply,
    decode_greeting,
    decode_header,
    decode_reply,
    encode_greeting,
    encode_header,
    encode_reply,
    routing_id,
)

RUN = bytes(range(16))
HEADER = Header(
    kind=Kind.UNROLL,
    run=RUN,
    actor=3,
    incarnation=1,
    sequence=7,
    unroll_index=9,
    weights_version=8,
    first_env=12,
    num_envs=4,
    num_finals=2,
    num_episodes=5,
    act_us=100,
    wait_weights_us=200,
    wait_credit_us=300,
)
PAYLOAD = b"a payload of some bytes"
WELCOME = Reply(Answer.WELCOME, RUN, number=42, cut=3, first_env=12, num_envs=4)

uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
headers = st.builds(
    Header,
    kind=st.integers(0, 2**16 - 1),
    run=st.binary(min_size=16, max_size=16),
    actor=uint32,
    incarnation=uint32,
    sequence=uint64,
    unroll_index=uint64,
    weights_version=uint64,
    first_env=uint32,
    num_envs=uint32,
    num_finals=uint32,
    num_episodes=uint32,
    act_us=uint32,
    wait_weights_us=uint32,
    wait_credit_us=uint32,
)


replies = st.builds(
    Reply,
    answer=st.integers(0, 2**16 - 1),
    run=st.binary(min_size=16, max_size=16),
    number=uint64,
    cut=uint32,
    first_env=uint32,
    num_envs=uint32,
)


def flipped(message: bytes, bit: int) -> bytes:
    changed = bytearray(message)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@given(header=headers, payload=st.binary(max_size=200))
def test_header_comes_out_as_it_went_in(header, payload):
    assert decode_header(encode_header(header, payload), payload) == header


@given(reply=replies, payload=st.binary(max_size=200))
def test_reply_comes_out_as_it_went_in(reply, payload):
    assert decode_reply(encode_reply(reply, payload), payload) == reply


@given(st.builds(Greeting, st.binary(min_size=32, max_size=32), uint64, uint64))
def test_greeting_comes_out_as_it_went_in(greeting):
    assert decode_greeting(encode_greeting(greeting)) == greeting


@given(st.binary(max_size=100).filter(lambda payload: len(payload) != 48))
def test_greeting_of_another_length_is_malformed(payload):
    with pytest.raises(Malformed, match=f"greeting of {len(payload)} bytes, wanted 48"):
        decode_greeting(payload)


def test_sizes_are_what_other_builds_of_this_protocol_expect():
    assert HEADER_BYTES == len(encode_header(HEADER, b"")) == 88
    assert REPLY_BYTES == len(encode_reply(Reply(Answer.WELCOME, RUN, 0))) == 48


def test_every_flipped_bit_of_a_header_is_noticed():
    frame = encode_header(HEADER, PAYLOAD)
    for bit in range(8 * len(frame)):
        with pytest.raises(Malformed):
            decode_header(flipped(frame, bit), PAYLOAD)


def test_every_flipped_bit_of_a_payload_is_noticed():
    frame = encode_header(HEADER, PAYLOAD)
    for bit in range(8 * len(PAYLOAD)):
        with pytest.raises(Malformed, match="crc32 differs"):
            decode_header(frame, flipped(PAYLOAD, bit))


def test_every_flipped_bit_of_a_reply_and_its_payload_is_noticed():
    frame = encode_reply(WELCOME, PAYLOAD)
    for bit in range(8 * len(frame)):
        with pytest.raises(Malformed):
            decode_reply(flipped(frame, bit), PAYLOAD)
    for bit in range(8 * len(PAYLOAD)):
        with pytest.raises(Malformed, match="crc32 differs"):
            decode_reply(frame, flipped(PAYLOAD, bit))


def test_shortened_and_lengthened_messages_are_noticed():
    frame, reply = encode_header(HEADER, PAYLOAD), encode_reply(WELCOME, PAYLOAD)
    for size in range(len(frame)):
        with pytest.raises(Malformed):
            decode_header(frame[:size], PAYLOAD)
    for size in range(len(PAYLOAD)):
        with pytest.raises(Malformed):
            decode_header(frame, PAYLOAD[:size])
        with pytest.raises(Malformed):
            decode_reply(reply, PAYLOAD[:size])
    for size in range(len(reply)):
        with pytest.raises(Malformed):
            decode_reply(reply[:size], PAYLOAD)
    for more in (b"\0", b"more"):
        with pytest.raises(Malformed):
            decode_header(frame + more, PAYLOAD)
        with pytest.raises(Malformed):
            decode_header(frame, PAYLOAD + more)
        with pytest.raises(Malformed):
            decode_reply(reply + more, PAYLOAD)
        with pytest.raises(Malformed):
            decode_reply(reply, PAYLOAD + more)


@given(frame=st.binary(max_size=2 * HEADER_BYTES), payload=st.binary(max_size=100))
def test_random_bytes_are_malformed_and_nothing_else(frame, payload):
    with pytest.raises(Malformed):
        decode_header(frame, payload)
    with pytest.raises(Malformed):
        decode_reply(frame, payload)


def test_header_of_another_protocol_says_which_was_wanted():
    frame = bytearray(encode_header(HEADER, PAYLOAD))
    frame[4] = 99
    with pytest.raises(Malformed, match=rf"99, wanted b'RLOT' {PROTOCOL}"):
        decode_header(bytes(frame), PAYLOAD)


def test_routing_ids_differ_between_actors_and_between_their_lives():
    ids = {routing_id(actor, life) for actor in range(300) for life in range(3)}
    assert len(ids) == 900
    assert not any(one.startswith(b"\0") for one in ids)  # ZeroMQ keeps those to itself
