"""Where the node is in its life cycle."""

from enum import StrEnum


class Stage(StrEnum):
    """Where the node is in its life cycle."""

    UNCONFIGURED = 'unconfigured'
    CONFIGURING = 'configuring'
    INACTIVE = 'inactive'
    ACTIVE = 'active'
    CLEANING_UP = 'cleaning up'
    FINALIZED = 'finalized'
