"""The methods that are compared: each is one function, decorated with where it appears and under which name."""

# The order of the imports is that of rows in tables.
# isort: off
from experiments.methods import baselines as baselines
from experiments.methods import loss_aware as loss_aware
from experiments.methods import remedies as remedies
from experiments.methods import one_gradient as one_gradient
from experiments.methods import controls as controls
from experiments.methods import forward_backtrack as forward_backtrack
