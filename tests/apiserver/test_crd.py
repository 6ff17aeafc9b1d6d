"""What the API server itself refuses, with words that help, and what it does with what it accepts."""

import copy
import os
import subprocess
from typing import Any

import pytest
from kubernetes.client import ApiClient

from e2e.cluster import binaries
from poolkeeper.api import SpecError, parse
from poolkeeper.parameters import OWNED_REMEDIES, PARAMETERS
from tests.apiserver.conftest import Api, Refused
