"""The plan of a cut as text has every figure and says what it leaves out."""

from taskedge.cooperation.cut.cut_plan import PlanGroup, plan_step
from taskedge.reporting.cut_text import bytes_text, cut_plan_text, flops_text


def test_the_plan_as_text():
    groups = [PlanGroup("a", 4, (3,), 8, (8,)), PlanGroup("b", 4, (3,), 8, (8,))]
    plans = {
        "4 x 3": plan_step(groups, 100, 8, block_parameters=[50]).as_json() | {"seconds_by_link": [0.25]},
        "head alone": plan_step([], 100, 8).as_json() | {"seconds_by_link": [0.125]},
    }
    assert cut_plan_text(plans, ["10 Mbit/s, 20 ms"]).splitlines() == [
        "a step      from cloud  from device  trips  device work  device memory  cloud work  10 Mbit/s, 20 ms",
        "4 x 3           8.8 kB      10.4 kB      6     12 kFLOP          26 kB    20 kFLOP            0.25 s",
        "head alone      3.2 kB       3.2 kB      2       0 FLOP        22.4 kB   not known           0.125 s",
        "",
        "100 tokens in a batch, with padding, coded as fp32. Bytes are those of activations and their gradients; masks "
        "and message headers come on top.",
        "Work of the device is without embedding and head; its memory is an estimate, without Python and libraries.",
    ]


def test_work_has_a_prefix():
    assert [flops_text(flops) for flops in (0, 999, 1500, 2.5e9, 1e18)] == [
        *("0 FLOP", "999 FLOP", "1.5 kFLOP", "2.5 GFLOP", "1,000,000 TFLOP")
    ]
    assert [bytes_text(size) for size in (0, 999.6, 12_345, 123_456)] == ["0 B", "1 kB", "12.3 kB", "123 kB"]
