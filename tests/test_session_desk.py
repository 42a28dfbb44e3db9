"""A worker's desk: each answer finds who asked, counts do not drift, and what is in use is told in few words."""

import pytest

from router.control import EndSession, SessionAnswer, SessionsUsed, StartSession
from router.errors import Kind
from router.routing.session_token import SessionClaim
from router.routing.sessions import Session, SessionIndex
from router.routing.spec import SessionEntry
from router.session_book import SessionUse
from router.session_desk import SessionDesk


class Desk:
    def __init__(self):
        self.sent = []
        self.answers = []
        self.index = SessionIndex()
        self.desk = SessionDesk(self.sent.append, self.index)

    def answer(self, *told):
        self.answers.append(told)


@pytest.fixture
def made():
    return Desk()


def test_a_start_counts_from_the_question_on(made):
    made.desk.start("e", "r", 60, made.answer)
    assert made.sent == [StartSession(1, "e", "r", 60)]
    assert made.index.counts == {("e", "r"): 1}
    made.desk.take(SessionAnswer(1, "id", 7), 1.0)
    assert made.answers == [("id", 7, None)]
    assert made.index.counts == {("e", "r"): 1}
    assert made.index.open == {"id": SessionEntry("id", "e", "r", 60)}
    made.desk.take(SessionAnswer(1, "id", 7), 1.0)
    assert len(made.answers) == 1, "an answer that nobody waits for"


def test_one_that_is_refused_does_not_count_any_more(made):
    made.desk.start("e", "r", 60, made.answer)
    made.desk.take(SessionAnswer(1, refusal="at_capacity"), 1.0)
    assert made.answers == [("", 0, Kind.AT_CAPACITY)]
    assert made.index.counts == {}


def test_the_table_may_be_quicker_than_the_answer(made):
    made.desk.start("e", "r", 60, made.answer)
    made.index.change((SessionEntry("id", "e", "r", 60),), (), 1.0)
    made.desk.take(SessionAnswer(1, "id", 7), 1.0)
    assert made.index.counts == {("e", "r"): 1}


def test_answers_in_any_order(made):
    for name in "abc":
        made.desk.start(name, "r", 60, made.answer)
    made.desk.take(SessionAnswer(3, "third"), 1.0)
    made.desk.take(SessionAnswer(1, "first"), 1.0)
    assert set(made.index.counts) == {("a", "r"), ("b", "r"), ("c", "r")}
    assert [entry.endpoint for entry in made.index.open.values()] == ["c", "a"]


def test_an_end(made):
    made.index.change((SessionEntry("id", "e", "r", 60),), (), 1.0)
    made.desk.end("id", made.answer)
    assert made.sent == [EndSession(1, "id")]
    assert made.index.open, "not before it is so"
    made.desk.take(SessionAnswer(1), 1.0)
    assert made.answers == [("id", 0, None)]
    assert made.index.open == made.index.counts == {}
    made.desk.end("other", made.answer)
    made.desk.take(SessionAnswer(2, refusal="session_unavailable"), 1.0)
    assert made.answers[1] == ("other", 0, Kind.SESSION_UNAVAILABLE)


def test_no_more_questions_than_may_be_open(made, monkeypatch):
    monkeypatch.setattr("router.session_desk.MAX_ASKED", 1)
    made.desk.start("e", "r", 60, made.answer)
    made.desk.start("e", "r", 60, made.answer)
    assert made.answers == [("", 0, Kind.AT_CAPACITY)]
    assert made.index.counts == {("e", "r"): 1}


def test_use_is_told_once(made):
    session = Session(SessionClaim("id", "e", "main", "r", 60, 0))
    made.desk.report(0.0)
    made.index.enter(session)
    made.index.enter(session)
    made.desk.report(0.0)
    made.desk.report(0.0)
    made.index.leave(session)
    made.index.leave(session)
    made.desk.report(0.0)
    assert made.sent == [SessionsUsed([SessionUse("id", "e", "r", 60, busy)]) for busy in (True, False)]
