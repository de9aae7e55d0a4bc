"""The order of samples: complete, the same for any number of workers, found from any step."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.train.plan import EpochPlan, RowGroup


@st.composite
def plans(draw):
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=12))
    lanes = draw(st.sampled_from([1, 2, 4]))
    batch = lanes * draw(st.integers(1, 5))
    groups = tuple(RowGroup(f"part-{n % 3}", n, rows) for n, rows in enumerate(sizes))
    return EpochPlan(groups, batch, lanes, draw(st.integers(1, 5)), draw(st.integers(0, 9)))


def rows_of(window):
    return [
        (piece.file, piece.row_group, row)
        for piece in window.pieces
        for row in range(piece.start, piece.stop)
    ]


@settings(max_examples=200)
@given(plan=plans(), epoch=st.integers(0, 3))
def test_an_epoch_uses_every_row_once_but_for_less_than_a_batch(plan, epoch):
    used = [
        row for lane in range(plan.lanes) for w in plan.windows(epoch, lane) for row in rows_of(w)
    ]
    assert len(used) == len(set(used)) == plan.steps_per_epoch * plan.global_batch
    assert plan.rows - len(used) < plan.global_batch


@given(plan=plans(), epoch=st.integers(0, 3), data=st.data())
def test_windows_found_from_a_step_are_those_of_the_whole_epoch(plan, epoch, data):
    step = data.draw(st.integers(0, max(0, plan.steps_per_epoch - 1)))
    for lane in range(plan.lanes):
        later = plan.windows(epoch, lane, from_step=step)
        assert later == [w for w in plan.windows(epoch, lane) if w.first_step + w.steps > step]
        assert not later or later[0].first_step <= step


@given(plan=plans())
def test_each_window_supplies_its_share_of_every_step(plan):
    for lane in range(plan.lanes):
        for window in plan.windows(0, lane):
            assert len(rows_of(window)) == window.steps * plan.rows_per_lane_step


def test_epochs_and_seeds_differ_and_repeat():
    groups = tuple(RowGroup("part-0", n, 16) for n in range(20))
    plan = EpochPlan(groups, 16, 4, 2, seed=0)
    assert plan.windows(0, 0) == EpochPlan(groups, 16, 4, 2, seed=0).windows(0, 0)
    assert plan.windows(0, 0)[0].pieces != plan.windows(1, 0)[0].pieces
    assert plan.windows(0, 0)[0].pieces != EpochPlan(groups, 16, 4, 2, 1).windows(0, 0)[0].pieces
