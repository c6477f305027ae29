"""What does a signal mean that comes before an application is imported?"""

from __future__ import annotations

import signal

import pytest

from prefork.signals import SignalInbox, StoppedEarly

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_stop_that_came_before_the_inbox_lost_its_patience_counts(number: signal.Signals) -> None:
    with SignalInbox(signal.SIGHUP, number) as inbox:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(number)
        with pytest.raises(StoppedEarly) as early:
            inbox.lose_patience()
        assert early.value.signal is number


def test_what_else_came_before_is_kept() -> None:
    with SignalInbox(signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1) as inbox:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGUSR1)
        inbox.lose_patience()
        assert inbox.read() == [signal.SIGHUP, signal.SIGUSR1]
        with pytest.raises(StoppedEarly) as early:
            signal.raise_signal(signal.SIGTERM)
        assert early.value.signal is signal.SIGTERM
        inbox.impatient = False
        assert inbox.read() == [signal.SIGTERM]
