"""A text to score quantized models on when the user gives none: plain prose, written for this purpose."""

from __future__ import annotations

SAMPLE = """\
The ferry left the harbour at six in the morning, when the light over the water was still grey. On deck, two
fishermen talked about the price of fuel and the weather of the coming week. A woman with a red scarf read a
letter, folded it, and put it back into her coat. Behind them the town became smaller: first the houses went,
then the church tower, and at last the long wall of the old shipyard.

Rivers carry sand and clay to the sea. Where the current slows down, the heavier grains sink first, and over
centuries they form banks, islands and deltas. Because the ground there is fertile and flat, people have
settled in such places since the beginning of farming. They built dikes to keep the water out and canals to
let it go. When the dikes broke, they built them again, a little higher each time.

To bake a simple bread, mix five hundred grams of flour with ten grams of salt and seven grams of dry yeast.
Add three hundred and fifty millilitres of warm water and knead the dough for ten minutes. Let it rest under a
cloth until it has doubled in size. Shape a loaf, let it rest once more for half an hour, and bake it at two
hundred and twenty degrees until the crust sounds hollow when you knock on it.

A computer stores every number with a limited count of digits. If a result needs more of them than there are,
it is rounded to the nearest value that fits. One rounding is harmless. A million of them, one after the
other, can add up to an error that somebody notices, and so engineers measure how far a calculation has moved
before they trust it.

The committee met on the first Tuesday in March. It approved the budget, postponed the question of the new
library, and thanked the volunteers who had repaired the roof of the school during the winter. Nobody spoke
against the plan to plant forty trees along the road to the station. The next meeting will be held in May.
"""
