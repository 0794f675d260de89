from benchmarks.report.report_trust import attacks, privacy


def attack(name, aggregator, *accuracies):
    return [{"attack": name, "aggregator": aggregator, "accuracy": accuracy} for accuracy in accuracies]


def test_attacks_have_a_row_each_and_state_missing_seeds():
    lines = attack("none", "mean", 0.75, 0.77, 0.76) + attack("scaled", "krum", 0.5)
    shown = attacks(lines).splitlines()
    assert shown[0].replace("**", "").startswith("| attack by 3 of 9 devices | `mean` | `krum` |")
    assert shown[2] == "| none | 76.0 ± 1.0 |  |"
    assert shown[3] == "| scaled |  | 50.0 (1 seed) |"


def run(form, epsilon, lr, seed, validation, test, values=770):
    about = {"form": form, "epsilon": epsilon, "lr": lr, "seed": seed, "trained_values": values}
    return about | {"validation": validation, "test": test}


def test_a_form_is_shown_at_the_rate_that_validation_chose_and_a_run_at_that_of_its_entries():
    lines = [
        run("entries 1%", "8", 0.01, 0, 0.8, 0.7, 6000),
        run("entries 1%", "8", 0.003, 0, 0.7, 0.9, 6000),
        run("entries 1%", "none", 0.01, 0, 0.8, 0.78, 6000),
        run("run", "8", 0.01, 0, 0.1, 0.71, None),
        run("run", "8", 0.01, 1, 0.1, 0.73, None),
    ]
    shown = privacy(lines).splitlines()
    assert shown[2] == "| entries, 1 % | 6,000 | 78.0 (1 seed) | 70.0 (1 seed) |  |  |"
    assert shown[3] == "| entries, 1 %, a real run in float8 |  |  | 72.0 ± 1.4 (2 seeds) |  |  |"
