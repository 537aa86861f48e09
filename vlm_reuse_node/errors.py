# Copyright 2026 vlm_reuse_node maintainers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Errors of this package. A message says what was given, what was expected and what to do."""


class VlmReuseError(Exception):
    """Base class of all errors that this package raises."""


class ConfigError(VlmReuseError):
    """A parameter is unknown, of the wrong type, or out of range."""


class ModelError(VlmReuseError):
    """The model cannot be loaded, or failed while it was running."""


class ImageError(VlmReuseError):
    """A camera message does not hold a usable picture.

    cause: a short, stable key for counters, such as 'truncated' or 'encoding'.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class InvalidRequestError(VlmReuseError):
    """A request is invalid: a question or a standing question that cannot be asked like this."""
