"""The table of states by itself: what must hold of it whatever uses it."""

import itertools

import pytest

from asgiws import states
from asgiws.states import INCOMING, TRANSITIONS, Phase, WebSocketState

OUTGOING = frozenset({"websocket.accept", "websocket.send", "websocket.close", "websocket.http.response"})
FAILED = "send failed"
MOVES = [(phase, event, after) for phase, moves in TRANSITIONS.items() for event, after in moves.items()]
DISCONNECTED = WebSocketState.DISCONNECTED


def only_in(event: str) -> set[Phase]:
    """The phases in which the event is legal."""
    return {phase for phase, moves in TRANSITIONS.items() if event in moves}


def reachable(start: Phase) -> set[Phase]:
    """Every phase that moves lead to from this one, itself included."""
    found, waiting = {start}, [start]
    while waiting:
        for after in TRANSITIONS[waiting.pop()].values():
            if after not in found:
                found.add(after)
                waiting.append(after)
    return found


def test_the_states_have_the_numbers_that_starlette_gives_them() -> None:
    assert {state.name: state.value for state in WebSocketState} == {
        "CONNECTING": 0,
        "CONNECTED": 1,
        "DISCONNECTED": 3,
    }


def test_every_phase_has_its_row_and_carries_it() -> None:
    for phase in TRANSITIONS:
        assert phase.moves is TRANSITIONS[phase]


def test_every_event_is_one_that_a_server_or_an_application_sends_or_the_failure_to_send_it() -> None:
    assert not INCOMING & OUTGOING
    assert {event for _, event, _ in MOVES} == INCOMING | OUTGOING | {FAILED}


def test_every_phase_can_be_told_from_the_others_by_its_text() -> None:
    assert len({phase.text for phase in TRANSITIONS}) == len(TRANSITIONS)


def test_every_phase_is_reached_from_the_start() -> None:
    assert reachable(states.OPENING) == set(TRANSITIONS)


@pytest.mark.parametrize("phase", TRANSITIONS, ids=lambda phase: phase.name)
def test_the_end_is_reached_from_every_phase_and_never_left(phase: Phase) -> None:
    assert states.ENDED in reachable(phase)
    assert reachable(states.ENDED) == {states.ENDED}


@pytest.mark.parametrize(("phase", "event", "after"), MOVES)
def test_no_move_brings_a_side_back(phase: Phase, event: str, after: Phase) -> None:
    assert after.client.value >= phase.client.value
    assert after.application.value >= phase.application.value


@pytest.mark.parametrize(("phase", "event", "after"), MOVES)
def test_a_move_touches_only_the_side_whose_event_it_is(phase: Phase, event: str, after: Phase) -> None:
    if event in INCOMING or event == FAILED:
        assert after.application is phase.application
    else:
        assert after.client is phase.client


def test_the_first_event_is_the_clients() -> None:
    # P2, P3: the handshake, or its end in place of it; nothing is sent before.
    assert set(TRANSITIONS[states.OPENING]) == {"websocket.connect", "websocket.disconnect"}
    assert only_in("websocket.connect") == {states.OPENING}


def test_a_handshake_is_answered_once() -> None:
    # P8: accept and denial exclude each other, and neither comes a second time.
    assert only_in("websocket.accept") == {states.ASKED} == only_in("websocket.http.response")
    for answer in ("websocket.accept", "websocket.http.response"):
        assert states.ASKED not in reachable(TRANSITIONS[states.ASKED][answer])


def test_messages_are_sent_only_while_both_sides_are_open() -> None:
    assert only_in("websocket.send") == {states.OPEN}
    assert TRANSITIONS[states.OPEN]["websocket.send"] is states.OPEN


def test_no_message_comes_before_accept() -> None:
    # T19: connect, accept, then receive.
    for phase in only_in("websocket.receive"):
        assert phase not in {states.OPENING, states.ASKED, states.LEFT_EARLY, states.REFUSED}


def test_close_is_legal_as_soon_as_the_handshake_was_read() -> None:
    # T17, P24: after the end it is a no-op.
    assert only_in("websocket.close") == set(TRANSITIONS) - {states.OPENING}
    for phase, event, after in MOVES:
        if event == "websocket.close":
            assert after.application is DISCONNECTED
            assert (after is phase) is (phase.application is DISCONNECTED)


def test_after_the_applications_end_only_a_close_that_does_nothing_is_left_to_send() -> None:
    for phase, moves in TRANSITIONS.items():
        if phase.application is DISCONNECTED:
            assert set(moves) & OUTGOING == {"websocket.close"}
            assert moves["websocket.close"] is phase


def test_a_disconnect_is_taken_wherever_the_client_is_not_gone() -> None:
    # P3: it may come instead of anything.
    for phase, moves in TRANSITIONS.items():
        if phase.client is not DISCONNECTED:
            assert moves["websocket.disconnect"].client is DISCONNECTED


def test_a_failed_send_means_that_the_client_has_gone_and_what_it_said_is_still_read() -> None:
    # T7; before accept there was nothing to say.
    assert only_in(FAILED) == {states.ASKED, states.OPEN}
    for phase in only_in(FAILED):
        assert TRANSITIONS[phase][FAILED].client is DISCONNECTED
    lost = TRANSITIONS[states.OPEN][FAILED]
    assert TRANSITIONS[lost]["websocket.receive"] is lost
    assert TRANSITIONS[lost]["websocket.disconnect"] is TRANSITIONS[states.OPEN]["websocket.disconnect"]


def test_the_order_of_two_ends_does_not_matter() -> None:
    for phase in (states.ASKED, states.OPEN):
        for first, second in itertools.permutations(["websocket.close", "websocket.disconnect"]):
            assert TRANSITIONS[TRANSITIONS[phase][first]][second] is states.ENDED
