"""Ask the server whether it knows a hospital's key: join for a moment, and leave."""

from fedimaging.errors import LinkDown, LinkError, LinkRefused, RunError
from fedimaging.federated.flower_http import FleetLine
from fedimaging.files import held
from fedimaging.keys import read_private
from fedimaging.site.finding import Finding
from fedimaging.site.folder import SiteFolder


def registered(folder: SiteFolder) -> Finding:
    """Whether the server lets this hospital in; not asked where a node of this folder runs, which would be disturbed."""
    try:
        with held(folder.run_lock, "running"):
            return _asked(folder)
    except RunError:
        return Finding("registered", None, "a node runs in this folder; its own screen says whether it has joined")


def _asked(folder: SiteFolder) -> Finding:
    line = FleetLine(folder.settings.server, folder.ca_file, read_private(folder.key_file))
    try:
        line.activate()
        line.deactivate()
    except LinkRefused as error:
        return Finding("registered", False, f"the server does not let this key in ({error}); give keys/node.pub to the operator")
    except (LinkDown, LinkError) as error:
        return Finding("registered", None, f"not known until the server answers: {error}")
    finally:
        line.close()
    return Finding("registered", True, "the server knows this hospital's key")
