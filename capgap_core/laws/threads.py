"""One thread for linear algebra, where there is next to nothing to compute."""

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def one_thread() -> AbstractContextManager[Any]:
    """Keep linear algebra to one thread: of matrices of ten rows others get nothing to do, and are waited for."""
    return _libraries().limit(limits=1, user_api="blas")
