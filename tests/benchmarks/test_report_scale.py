"""Tables of runs with many devices."""

from benchmarks.report.report_scale import connections, coordinators, hierarchy, jetstream


def run(links, devices, revision, **figures):
    made = [{"what": what.replace("_", " "), "median": value} for what, value in figures.items()]
    return {"links": links, "devices": devices, "revision": revision, "figures": made}


def test_a_row_a_run_with_the_earlier_revision_first():
    lines = [
        run("nats", 100, "now", a_device=1.0, slowest_of_them=2.5),
        run("memory", 1000, "now", largest_resident_memory_of_it=870.3),
        run("memory", 1000, "before", largest_resident_memory_of_it=784.9),
    ]
    rows = coordinators(lines).splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["1,000 in memory, before", "1,000 in memory", "100 TLS"]
    assert "| 870 |" in rows[1]
    assert "| 2.50 |" in connections(lines)
    assert "in memory" not in connections(lines)


def test_quantities_of_one_way_are_in_one_row():
    figures = [
        {"what": "4 MB, chunks: wall time", "median": 12.345, "unit": "ms"},
        {"what": "4 MB, chunks: server, processor", "median": 3.0, "unit": "ms"},
        {"what": "stale tasks, work queue", "median": 5, "unit": ""},
    ]
    rows = jetstream(figures).splitlines()[2:]
    assert rows == ["| 4 MB, chunks | 12.3 ms |  |  | 3 ms |  |", "| stale tasks, work queue |  |  |  |  | 5 |"]


def test_a_tree_is_named_by_its_tiers():
    keys = ("round_s", "root_in_mb", "root_out_mb", "all_links_mb", "root_core_s", "region_core_s", "reconnect_core_s")
    lines = [
        {"devices": 100_000, "regional coordinators": tiers, "largest_coordinator_mb": 900.0} | dict.fromkeys(keys, 1.5)
        for tiers in ([], [10, 100])
    ]
    rows = hierarchy(lines).splitlines()[2:]
    assert rows[0].startswith("| 100,000 | none | 1.5 |")
    assert rows[1].startswith("| 100,000 | 10, then 100 | 1.5 |")
