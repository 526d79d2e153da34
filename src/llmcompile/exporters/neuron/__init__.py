"""AWS Neuron: static graphs for Inferentia and Trainium, lowered here, compiled by neuronx-cc."""
