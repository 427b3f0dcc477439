"""What is set up when it is first needed, and by which of several threads.

The native code is loaded at the first call that needs it, a packed network is planned at its first
picture. If that first call comes from four threads together, one of them does the work and the
others wait for it: two loadings of one library would be an error, four plans four times the memory.

They wait for one lock. A process that forks copies it in the state that it is in, and in the child
the thread that would open it is missing. So a fork waits as well, until nothing is being set up.
"""

from __future__ import annotations

import os
import threading

SETTING_UP = threading.RLock()  # one thread may plan a network and, for that, load the native code

if hasattr(os, "register_at_fork"):  # where there is fork
    os.register_at_fork(
        before=SETTING_UP.acquire,
        after_in_parent=SETTING_UP.release,
        after_in_child=SETTING_UP.release,
    )
