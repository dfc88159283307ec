"""Where torch's inductor keeps what it was not told to keep elsewhere.

Source: `torch._inductor.runtime.cache_dir_utils` and `torch._inductor.codecache` of torch 2.13.
"""

import getpass
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

HEADERS = "precompiled_headers"
"""Its folder of C++ headers, in the default folder whatever TORCHINDUCTOR_CACHE_DIR says."""


def default_folder(environ: Mapping[str, str]) -> Path:
    """Return the user's folder among temporary files."""
    user = next((name for variable in _USER if (name := environ.get(variable))), None) or getpass.getuser()
    return Path(tempfile.gettempdir(), "torchinductor_" + re.sub(r'[\\/:*?"<>|]', "_", user))


_USER = ("LOGNAME", "USER", "LNAME", "USERNAME")
"""Where `getpass.getuser` looks before it asks the system."""
