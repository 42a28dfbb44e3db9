"""The time of day: drift is followed, a jump is believed only when it stays."""

from router.walltime import BELIEVED_AFTER_S, STEP_S, WallTime


class Rig:
    def __init__(self):
        self.wall = WallTime()
        self.now = 1_000.0
        self.offset = self.wall.at(0.0)

    def look(self, seconds, offset):
        self.now += seconds
        self.wall.look(self.now, self.now + self.offset + offset)
        return self.wall.at(self.now) - self.now - self.offset


def test_drift_is_followed():
    rig = Rig()
    assert abs(rig.look(1.0, 0.5) - 0.5) < 1e-6
    assert abs(rig.look(1.0, STEP_S) - STEP_S) < 1e-6


def test_a_jump_that_goes_away_changes_nothing():
    for jump in (-86_400.0, 86_400.0):
        rig = Rig()
        for _ in range(int(BELIEVED_AFTER_S) - 2):
            assert abs(rig.look(1.0, jump)) < 1e-6
        assert abs(rig.look(1.0, 0.0)) < 1e-6
        for _ in range(int(BELIEVED_AFTER_S) - 2):
            assert abs(rig.look(1.0, jump)) < 1e-6, "the time of the first jump does not count for the second"


def test_a_jump_that_stays_is_believed():
    rig = Rig()
    for _ in range(int(BELIEVED_AFTER_S)):
        rig.look(1.0, -3_600.0)
    assert abs(rig.look(1.0, -3_600.0) + 3_600.0) < 1e-6


def test_a_clock_that_jumps_about_is_not_believed():
    rig = Rig()
    for i in range(300):
        assert abs(rig.look(1.0, 3_600.0 * (1 + i))) < 1e-6
