"""What training steps are said to need of memory, against what follows from their definitions."""

from experiments.costs import memory as memory_costs
from experiments.costs.memory import ADAM_STEP, methods


def test_bytes_of_state():
    rows = {row["what"]: row for row in memory_costs.state_ratios("small_mlp")}
    expected = {"two-stage": 8, "optimistic": 12}
    bfloat16 = {"loss-aware": 6, "two-stage": 6, "optimistic": 10}
    expected |= {f"{name}, first moment in bfloat16": value for name, value in bfloat16.items()}
    assert {what: row["bytes_per_parameter"] for what, row in rows.items()} == {
        f"optimizer state: {name}": value for name, value in expected.items()
    }
    assert [row["ratio"] for row in rows.values()] == [value / 8 for value in expected.values()]


def test_rows_of_memory_and_compilation(monkeypatch):
    compared = {name: methods()[name] for name in (ADAM_STEP, "two-stage, binary")}
    monkeypatch.setattr(memory_costs, "methods", lambda: compared)
    memory, compilation = memory_costs.memory_ratios("small_mlp", 8, rounds=1)
    assert memory["what"] == "small_mlp step, batch 8, temporary memory: two-stage, binary"
    assert compilation["what"] == "small_mlp step, batch 8, compilation: two-stage, binary"
    assert memory["ratio"] > 1
    assert compilation["ratio"] > 1
    weights = 784 * 256 + 256 * 256 + 256 * 10
    assert memory["bytes"] > 2 * 4 * weights  # both gradients; the second takes the place of the trial weights
