"""64-64-64-10 on 8×8 digits: small enough for hundreds of trainings in a minute."""

import dataclasses

from experiments.configs import digits

CONFIG = dataclasses.replace(digits.CONFIG, job="digits_mlp", network="digits_mlp")
