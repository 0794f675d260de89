"""The drawing of open layers: a line for each block, in order."""

from taskedge.reporting.open_layers import open_layers_text


def test_open_and_closed_layers_by_block():
    drawn = open_layers_text(
        {("layer.0", "query"), ("layer.1", "query"), ("layer.1", "output")},
        {("layer.0", "output"), ("layer.0", "key"), ("layer.10", "key")},
        ["layer.0", "layer.1", "layer.10"],
        ["query", "key", "output"],
    )
    assert drawn.splitlines() == [
        "open layers by depth, 3 of 6, from the input to the output (# open, . closed)",
        "  layer.0   #..  1 of 3",
        "  layer.1   # #  2 of 2",
        "  layer.10   .   0 of 1",
        "  in each line: query, key, output",
    ]


def test_a_model_without_layers_that_are_open():
    drawn = open_layers_text(set(), {("layer.0", "query")}, ["layer.0"], ["query"])
    assert drawn.splitlines()[0].startswith("open layers by depth, 0 of 1")
    assert drawn.splitlines()[1] == "  layer.0  .  0 of 1"
