from benchmarks.record import results
from benchmarks.report.report_planning import read, savings, solvers


def test_the_solvers_have_the_figures_of_the_results():
    found = read(results("planning"))
    several = found["planning_quality"]["several"]["gap_to_highs"]
    several["mean"], several["worst"] = 0.00123, 0.25
    sized = {row["devices"]: row["exact"] for row in found["planning_scale"]["any_number"] if row["blocks"] == 12}
    sized[6]["least_cpu_seconds"], sized[20]["stopped"] = 7.5, "heuristic"
    shown = solvers(found)
    assert "| `several` above HiGHS at fixed rates (40 cases): mean, worst | 0.12 %, 25 % |" in shown
    assert "CPU seconds on 6, 20 and 60 devices | 7.50, " in shown
    assert " s, 2 proved |" in shown


def test_savings_are_a_mean_over_the_fleets_with_its_range():
    def row(seconds, *saved):
        return {"seconds": seconds and {"mean": seconds}, "exact_saves_of_the_mean_per_fleet": list(saved)}

    rows = {"exact": row(2.5, 0.0, 0.0), "random": row(10.0, 0.7, 0.8), "fedavg": row(None)}
    shown = savings({"planning_headline": {"solvers": {"1 MHz": rows}}}).splitlines()
    assert shown[0] == "| solver | 1 MHz: mean round, exact saves |"
    assert shown[2:] == [
        "| `exact` | 2.50 s |",
        "| `random` | 10.00 s, 75.0 % (70.0 to 80.0) |",
        "| `fedavg` | no plan |",
    ]


def test_there_are_no_tables_without_all_results(tmp_path):
    (tmp_path / "planning_scale.json").write_text("{}")
    assert read(tmp_path) == {}
