"""The stages of the node's life cycle."""

from enum import StrEnum


class Stage(StrEnum):
    """A stage of the node's life cycle."""

    UNCONFIGURED = 'unconfigured'
    CONFIGURING = 'configuring'
    INACTIVE = 'inactive'
    ACTIVE = 'active'
    CLEANING_UP = 'cleaning up'
    FINALIZED = 'finalized'
