import numpy as np
import pytest
from fleets import least_hertz
from hypothesis import given
from hypothesis import strategies as st

from taskedge.errors import InputError
from taskedge.planning import FixedRateLink, MixedLink, SelectedLink, ShannonLink

figure = st.one_of(st.just(0.0), st.floats(1e-6, 1e15))


@given(snr=figure, share=st.floats(1e-12, 1 - 1e-9))
def test_bandwidth_and_rate_are_inverse(snr, share):
    link = ShannonLink(np.array([snr]))
    rate = share * snr / np.log(2)
    need = link.least_bandwidth(0, rate)
    assert not np.isnan(need)
    if rate > 0:
        assert link.rate(0, need) == pytest.approx(rate, rel=1e-9)


@given(snr=figure, rate=figure)
def test_least_bandwidth_agrees_with_bracketing(snr, rate):
    if snr and abs(rate * np.log(2) / snr - 1) < 1e-6:
        return  # at the very limit the bandwidth is ill-conditioned in the rate
    need = float(ShannonLink(np.array([snr])).least_bandwidth(0, rate))
    assert need == pytest.approx(least_hertz(snr, rate), rel=1e-6)


@given(snr=figure, low=figure, high=figure)
def test_rate_grows_with_bandwidth_up_to_its_limit(snr, low, high):
    link = ShannonLink(np.array([snr]))
    rates = link.rate(0, np.array([0.0, min(low, high), max(low, high), np.inf]))
    assert rates[0] == 0
    assert (np.diff(rates) >= -1e-9 * rates[1:]).all()
    assert rates[-1] == pytest.approx(snr / np.log(2))


@given(snr=figure, bits=figure, weight=figure, price=figure)
def test_fair_bandwidth_is_the_cheapest(snr, bits, weight, price):
    link = ShannonLink(np.array([snr]))
    best = float(link.fair_bandwidth(0, bits, weight, price))
    assert not np.isnan(best)
    if not all((snr, bits, weight, price)):
        return

    def cost(hertz):
        return weight * bits / float(link.rate(0, hertz)) + price * hertz

    if 1e-200 < best < 1e200:
        assert cost(best) <= min(cost(best * 1.01), cost(best / 1.01)) * (1 + 1e-12)


def test_edges_of_the_radio_link():
    link = ShannonLink(np.array([0.0, 1e6]))
    assert link.least_bandwidth([0, 0, 1, 1], [0.0, 1.0, 0.0, 1e7]).tolist() == [0.0, np.inf, 0.0, np.inf]
    assert link.fair_bandwidth(1, 1.0, 1.0, 0.0) == np.inf


def test_fixed_rate_needs_no_bandwidth():
    link = FixedRateLink(np.array([1e6, 0.0]))
    assert link.rate([0, 1], 0.0).tolist() == [1e6, 0.0]
    assert link.least_bandwidth([0, 0, 1, 1], [1e6, 1.1e6, 0.0, 1.0]).tolist() == [0.0, np.inf, 0.0, np.inf]


def test_mixed_link_asks_the_right_part():
    radio, cable = ShannonLink(np.array([1e6, 2e6, 3e6])), FixedRateLink(np.array([0.0, 5e6, 0.0]))
    link = MixedLink(radio, cable, np.array([False, True, False]))
    assert link.rate([0, 1, 2], 1e5).tolist() == [radio.rate(0, 1e5), 5e6, radio.rate(2, 1e5)]
    assert sorted(np.concatenate(link.chains()).tolist()) == [0, 1, 2]
    assert [chain.tolist() for chain in link.chains()] == [[2, 0], [1]]


@pytest.mark.parametrize("bad", [[np.nan], [-1.0], [np.inf], [], [[1.0]]])
def test_figures_that_cannot_be_are_refused(bad):
    with pytest.raises(InputError, match="snr_hz"):
        ShannonLink(np.array(bad))


def test_parts_of_a_mixed_link_must_agree():
    with pytest.raises(InputError, match="same devices"):
        MixedLink(ShannonLink(np.ones(2)), FixedRateLink(np.ones(3)), np.ones(2, bool))


def test_a_selection_of_a_link_has_the_rates_of_its_devices():
    link = ShannonLink(np.array([1.0, 4.0, 2.0, 8.0]))
    some = SelectedLink(link, np.array([3, 0, 2]))
    every = np.arange(3)
    assert some.devices == 3
    assert some.rate(every, 1.0).tolist() == link.rate(some.selected, 1.0).tolist()
    assert some.least_bandwidth(every, 0.5).tolist() == link.least_bandwidth(some.selected, 0.5).tolist()
    assert some.fair_bandwidth(every, 1.0, 1.0, 1.0).tolist() == link.fair_bandwidth(some.selected, 1, 1, 1).tolist()
    assert [chain.tolist() for chain in some.chains()] == [[0, 2, 1]]
