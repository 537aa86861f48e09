"""How long tests wait: until something has happened. Time alone never decides whether one passes."""

import time

# After this long the wait counts as hanging. A machine so busy that this is too short has no use for test results.
PATIENCE_S = 150.0


def wait_for(condition, what='the condition', meanwhile=lambda: time.sleep(0.05)):
    """Look until it is true, and return its value; `meanwhile` is done between two looks."""
    end_s = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < end_s, f'{what} did not happen within {PATIENCE_S:g} s'
        meanwhile()
    return value
