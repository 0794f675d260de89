"""The closed form counts every message once, in the coding's bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskedge.cooperation.cut.cut_coding import CODINGS, coded_bytes
from taskedge.cooperation.cut.cut_plan import PlanGroup, StatedLink, plan_step
from taskedge.errors import InputError, UnknownName

WIDTH, HIDDEN, TOKENS = 384, 1536, 32 * 128


def minilm(columns=None, rows=None, rank=None, blocks=range(6)):
    """Return the groups of MiniLM's six blocks: query, key and value; output; both linears of the feed-forward."""
    shapes = [(WIDTH, (WIDTH,) * 3), (WIDTH, (WIDTH,)), (WIDTH, (HIDDEN,)), (HIDDEN, (WIDTH,))]
    return [
        PlanGroup(
            f"{block}.{place}",
            columns=min(columns or inputs, inputs),
            rows=tuple(min(rows or out, out) for out in outputs),
            inputs=inputs,
            outputs=outputs,
            rank=rank,
            block=block,
        )
        for block in blocks
        for place, (inputs, outputs) in enumerate(shapes)
    ]


groups = st.lists(
    st.builds(
        lambda columns, rows, more, rank, block: PlanGroup(
            "g", columns, tuple(rows), columns + more, tuple(row + more for row in rows), rank, block
        ),
        st.integers(1, 9),
        st.lists(st.integers(1, 9), min_size=1, max_size=3),
        st.integers(0, 5),
        st.none() | st.integers(1, 4),
        st.integers(0, 3),
    ),
    max_size=5,
)


@given(groups, st.integers(1, 50), st.integers(1, 20), st.sampled_from(CODINGS))
def test_bytes_and_round_trips_are_those_of_a_walk_over_the_messages(groups, tokens, width, coding):
    """Send every message of the protocol, in its order."""
    log = [("up", width)]
    log += [message for group in groups for message in (("down", group.down), ("up", group.up))]
    log.append(("down", width))
    if groups:
        log.append(("up", width))
        for number in reversed(range(len(groups))):
            log.append(("down", groups[number].up))
            log.append(("up", groups[number].down if number else 0))
    plan = plan_step(groups, tokens, width, coding)
    for direction, found in (("down", plan.down_bytes), ("up", plan.up_bytes)):
        assert found == sum(coded_bytes((tokens, count), coding) for way, count in log if way == direction and count)
    requests = sum(way == "down" for way, _ in log) + 1  # and the one that asks for the pass
    assert plan.round_trips == requests
    assert plan.step_bytes == plan.down_bytes + plan.up_bytes == plan.as_json()["step_bytes"]


def test_the_figures_of_a_small_sentence_model():
    """By hand: 24 groups, N = 4,096 in bf16."""
    nothing = plan_step([], TOKENS, WIDTH, "bf16")
    assert nothing.step_bytes == 2 * TOKENS * WIDTH * 2
    query = [PlanGroup("query", 32, (32,), WIDTH, (WIDTH,))]
    more = plan_step(query, TOKENS, WIDTH, "bf16").step_bytes - 3 * TOKENS * WIDTH * 2
    assert more + TOKENS * 32 * 2 == 2 * TOKENS * (32 + 32) * 2 == 1_048_576  # the lowest sends no input gradient
    lora = plan_step(minilm(rank=8), TOKENS, WIDTH)
    block = plan_step(minilm(columns=32, rows=32), TOKENS, WIDTH)
    assert lora.step_bytes == 4 * TOKENS * (6 * 2 * (2688 + 3456) - 384 + 3 * 384)
    assert block.step_bytes == 4 * TOKENS * (6 * 2 * (128 + 192) - 32 + 3 * 384)
    assert block.step_bytes / lora.step_bytes < 1 / 12
    assert (lora.round_trips, block.round_trips) == (50, 50)


def test_work_is_three_products_a_module_and_two_of_the_lowest():
    entries = PlanGroup("a", 4, (3, 5), 10, (12, 14))
    assert plan_step([entries], 7, 10).device_flops == 2 * 7 * 4 * 8 * 2
    assert plan_step([entries, entries], 7, 10).device_flops == 2 * 7 * 4 * 8 * (2 + 3)
    low_rank = PlanGroup("a", 10, (12,), 10, (12,), rank=2)
    assert plan_step([entries, low_rank], 7, 10).device_flops == 2 * 7 * 4 * 8 * 2 + 6 * 7 * 2 * (10 + 12)


def test_the_cloud_passes_back_down_to_the_lowest_active_block():
    top = minilm(rank=1, blocks=[5])
    work = [100, 100, 100, 100, 100, 100]
    assert plan_step(minilm(rank=1), 3, WIDTH, block_parameters=work).cloud_flops == 2 * 3 * 1200
    assert plan_step(top, 3, WIDTH, block_parameters=work).cloud_flops == 2 * 3 * 700
    assert plan_step([], 3, WIDTH, block_parameters=work).cloud_flops == 2 * 3 * 600


def test_seconds_are_computing_delays_and_transfers():
    link = StatedLink(8e6, 0.02, compute_seconds=0.5, framing_bytes=100)
    plan = plan_step(minilm(columns=32, rows=32), 100, WIDTH, link=link)
    assert plan.seconds == pytest.approx(0.5 + 50 * 0.02 + (plan.step_bytes + 50 * 100) / 1e6)
    assert plan_step([], 1, 1).seconds is None


def test_memory_grows_with_what_a_step_keeps():
    small, large = (plan_step(minilm(columns=count, rows=count), TOKENS, WIDTH) for count in (32, 64))
    kept = TOKENS * 4 * (64 - 32) * 24
    trained = 16 * 6 * 6 * (64**2 - 32**2)
    assert large.device_bytes - small.device_bytes == kept + trained
    with_head = plan_step(minilm(columns=32, rows=32), TOKENS, WIDTH, own_parameters=1000, head_parameters=10)
    assert with_head.device_bytes - small.device_bytes == 4 * 1000 + 16 * 10


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plan_step([], 0, 4), InputError, "0 tokens of width 4"),
        (lambda: plan_step([], 4, 4, "fp8"), UnknownName, "unknown coding 'fp8'"),
        (lambda: StatedLink(0, 0.1), InputError, "bandwidth of 0 bit/s"),
        (lambda: StatedLink(1e6, -0.1), InputError, "delay of -0.1 s"),
        (lambda: StatedLink(1e6, 0.1, float("nan")), InputError, "nan s of computing"),
    ],
)
def test_sizes_and_links_that_cannot_be_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
