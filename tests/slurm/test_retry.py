"""Which failed jobs are submitted again."""

from pathlib import Path

import pytest

from lewel_bench.slurm import actions, survey
from lewel_bench.slurm.attempt import Attempt, begin
from lewel_bench.slurm.attempt import end as end_attempt
from lewel_bench.slurm.ledger import Ledger, LedgerEntry
from lewel_bench.slurm.retry import TaskEnd, Verdict, judge


def attempt(n: int, outcome: str = "", mark: str = "", uid: str = "", **more: object) -> Attempt:
    fields = {"restart": 0, "halvings": 0, "message": "", **more}
    return Attempt(
        name=str(n),
        uid=uid or f"u{n}",
        task=0,
        job="1",
        node="n",
        processes=1,
        started=float(n),
        mark=mark,
        outcome=outcome,
        **fields,  # type: ignore[arg-type]
    )


def end(n: int, state: str) -> TaskEnd:
    return TaskEnd(f"u{n}", 0, state, float(n))


def test_an_error_waits_for_retry() -> None:
    failed = [attempt(1, "error", message="ValueError: no")]
    assert judge(failed, [end(1, "FAILED")], "", 5) == Verdict(False, "failed: ValueError: no")
    assert judge([*failed, attempt(2, "retry")], [end(1, "FAILED")], "", 5).again
    assert not judge([attempt(1, "nan")], [], "", 5).again


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED"])
def test_a_node_failure_and_a_preemption_always(state: str) -> None:
    tried = [attempt(n) for n in range(50)]
    assert judge(tried, [end(n, state) for n in range(50)], "", 5).again


def test_a_time_limit_while_it_makes_progress() -> None:
    states = [end(n, "TIMEOUT") for n in range(20)]
    moving = [attempt(n, mark=f"checkpoint-{n:08d}") for n in range(20)]
    assert judge(moving, states, "checkpoint-00000020", 5).again
    standing = [attempt(n, mark="checkpoint-00000001") for n in range(4)]
    assert judge(standing, states[:4], "checkpoint-00000001", 5).again
    standing.append(attempt(4, mark="checkpoint-00000001"))
    verdict = judge(standing, states[:5], "checkpoint-00000001", 5)
    assert verdict == Verdict(False, "no progress in 5 attempts; last cause: TIMEOUT")
    assert judge(standing, states[:5], "checkpoint-00000002", 5).again


def test_out_of_memory_once_with_half() -> None:
    assert judge([attempt(1, "oom")], [], "", 5) == Verdict(True, "oom", 1)
    assert judge([attempt(1)], [end(1, "OUT_OF_MEMORY")], "", 5).halvings == 1
    twice = [attempt(1, "oom"), attempt(2, "oom", halvings=1)]
    assert not judge(twice, [], "", 5).again
    # it stays halved whatever ends the next attempt
    later = [attempt(1, "oom"), attempt(2, "", halvings=1)]
    assert judge(later, [end(2, "NODE_FAIL")], "", 5).halvings == 1


def test_killed_again_and_again_without_progress() -> None:
    killed = [attempt(n, "killed") for n in range(5)]
    assert judge(killed[:4], [], "", 5).again
    assert not judge(killed, [], "", 5).again


def test_requeues_by_slurm_do_not_count() -> None:
    tried = [attempt(n, uid="u", restart=n) for n in range(30)]
    assert judge(tried, [TaskEnd("u", 0, "NODE_FAIL", 0.0)], "", 5).again


def test_jobs_that_never_started() -> None:
    assert judge([], [end(n, "FAILED") for n in range(4)], "", 5).again
    verdict = judge([], [end(n, "FAILED") for n in range(5)], "", 5)
    assert verdict == Verdict(
        False, "no progress in 5 attempts; last cause: never started (FAILED)"
    )
    assert judge([], [end(n, "UNREACHED") for n in range(50)], "", 5).again
    assert judge([attempt(5, "retry")], [end(n, "FAILED") for n in range(5)], "", 5).again


def test_progress_resets_the_count_of_tasks_that_never_started() -> None:
    lost = [TaskEnd(f"x{n}", 0, "UNKNOWN", float(n)) for n in range(4)]
    tried = [attempt(10, "killed"), attempt(11, "killed", mark="checkpoint-5")]
    assert judge(tried, lost, "checkpoint-9", 4).again
    late = [TaskEnd(f"x{n}", 0, "UNKNOWN", float(n)) for n in range(20, 24)]
    assert "no progress in 4 attempts" in judge(tried, late, "checkpoint-9", 4).reason


def test_the_end_of_a_task_counts_only_for_jobs_that_it_started(tmp_path: Path) -> None:
    """The task reached its time limit, or stopped, before the second job of the pack."""
    books = Ledger(tmp_path)
    for state in ("TIMEOUT", "COMPLETED", "TIMEOUT"):
        submission = books.record_intent(kind="light", tasks=(("a", "b"),), max_attempts=3)
        books.record_ended(LedgerEntry(submission, "5", ended={0: state}))
        end_attempt(
            tmp_path / "a",
            begin(tmp_path / "a", submission.uid, 0, 1, 0, submission.marks),
            "stopped",
        )
    verdicts = survey.verdicts_on(tmp_path, ["a", "b"])
    assert verdicts["b"].again and verdicts["b"].reason == ""
    assert verdicts["a"].reason == "no progress in 3 attempts; last cause: TIMEOUT"


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("state", ["PREEMPTED", "NODE_FAIL"])
@pytest.mark.parametrize("outcome", ["error", "nan"])
def test_the_end_of_a_task_does_not_excuse_an_earlier_failure(
    tmp_path: Path, state: str, again: bool, outcome: str
) -> None:
    """The failed job was submitted again whenever the second job was interrupted."""
    books = Ledger(tmp_path)
    submission = books.record_intent(kind="light", tasks=(("a", "b"),))
    books.record_ended(LedgerEntry(submission, "5", ended={0: state}))
    tried = begin(tmp_path / "a", submission.uid, 0, 1, 0, submission.marks)
    if outcome == "error":  # perhaps caused by the end of the task
        end_attempt(tmp_path / "a", tried, outcome, "no")
        assert survey.verdicts_on(tmp_path, ["a"])["a"].again
    end_attempt(tmp_path / "a", tried, outcome, "no")
    begin(tmp_path / "b", submission.uid, 0, 1, 0, submission.marks)
    if again:  # by SLURM itself
        begin(tmp_path / "a", submission.uid, 0, 1, 0, submission.marks)
    verdicts = survey.verdicts_on(tmp_path, ["a", "b"])
    assert verdicts["b"].again
    assert not verdicts["a"].again and verdicts["a"].reason.endswith("no")


def test_cancelled() -> None:
    assert judge([attempt(1, "stopped")], [end(1, "CANCELLED")], "", 5).cancelled
    assert not judge([attempt(1, "stopped")], [end(1, "COMPLETED")], "", 5).cancelled


def test_status_judges_by_the_profile_that_submitted(tmp_path: Path) -> None:
    """Its max_attempts, and the checkpoints that the attempts were marked with."""
    (tmp_path / "key").mkdir()
    (tmp_path / "key" / "checkpoint-00012.json").touch()  # does not match the marks
    books = Ledger(tmp_path)
    for _ in range(2):
        submission = books.record_intent(
            kind="light", tasks=(("key",),), marks="checkpoint-*-*.pt", max_attempts=2
        )
        began = begin(tmp_path / "key", submission.uid, 0, 1, 0, submission.marks)
        end_attempt(tmp_path / "key", began, "killed")
    verdict = survey.verdicts_on(tmp_path, ["key"])["key"]
    assert verdict == Verdict(False, "no progress in 2 attempts; last cause: killed")
    assert actions.retry(tmp_path, ["key"]) == ["key"]
    assert survey.verdicts_on(tmp_path, ["key"])["key"].again


def test_attempts_that_lost_their_claim_are_counted() -> None:
    """Two planners that did not see each other's jobs fenced each other endlessly."""
    taken = [attempt(n, "fenced") for n in range(5)]
    assert judge([*taken[:4], attempt(4, "killed")], [], "", 5).again
    verdict = judge(taken, [], "", 5)
    assert (
        not verdict.again
        and "5 attempts in a row lost their claim to another attempt" in verdict.reason
    )
    moving = [attempt(n, "fenced", mark=f"checkpoint-{n}") for n in range(9)]
    assert judge(moving, [], "checkpoint-9", 5).again
    assert judge([*taken, attempt(6, "retry")], [], "", 5).again
