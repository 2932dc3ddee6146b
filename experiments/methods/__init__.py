"""The methods that are compared: each is one function, decorated with where it appears and under which name."""

# The order of the imports is that of rows in tables.
# isort: off
from experiments.methods import baselines as baselines
from experiments.methods import loss_aware as loss_aware
from experiments.methods import variants as variants
from experiments.methods import remedies as remedies
from experiments.methods import given_scale as given_scale
from experiments.methods import quest as quest
from experiments.methods import cage as cage
from experiments.methods import parq as parq
from experiments.methods import lotion as lotion
from experiments.methods import averages as averages
from experiments.methods import one_gradient as one_gradient
from experiments.methods import controls as controls
from experiments.methods import forward_backtrack as forward_backtrack
