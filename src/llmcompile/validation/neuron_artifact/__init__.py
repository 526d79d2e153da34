"""A Neuron artifact before it is compiled, read and executed apart from the code that wrote it."""
