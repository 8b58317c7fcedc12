"""The keys of a payload under which states are stored."""

MODEL_KEY = "model_state_dict"
OPTIMIZER_KEY = "optimizer_state_dict"
SCHEDULER_KEY = "scheduler_state_dict"
DATA_KEY = "data_state"
OTHERS_KEY = "others"
RNG_KEY = "rng_state"
EXTRA_STATE_KEY = "extra_state"

PAYLOAD_KEYS = {
    "model": MODEL_KEY,
    "optimizer": OPTIMIZER_KEY,
    "scheduler": SCHEDULER_KEY,
    "data": DATA_KEY,
    "others": OTHERS_KEY,
    "rng": RNG_KEY,
}
"""Where a payload holds the state of each kind of object."""
PER_PROCESS = ("data", "rng")
"""The kinds of which each process of a data-parallel training has its own state; a payload holds a list of them."""
RESUME_ONLY_KEYS = (OPTIMIZER_KEY, SCHEDULER_KEY, RNG_KEY, DATA_KEY)
"""What only a run that goes on from a checkpoint needs. Thinning drops that, and nothing that it does not know."""
