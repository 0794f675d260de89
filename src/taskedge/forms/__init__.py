"""How a change to the base is parameterized.

A form of the chosen entries is one module and one registration: a function ``(rank, factors) -> make``, where ``make``
builds the :class:`~taskedge.forms.entries.Entries` of one linear::

    from taskedge.forms.form_registry import form

    @form("sparse_lora", factored=True)
    def sparse_lora(rank, factors):
        return partial(LowRankEntries, rank=rank, factors=factors)
"""

STEP_EXPONENT = 0.75
"""Scaled steps are divided by this power of the number of entries of their neuron, where no other is given."""
PRODUCT_RATE = 0.1
"""Learning rate of products beside entries, relative to that of the entries, where no other is given."""
