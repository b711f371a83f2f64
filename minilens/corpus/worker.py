"""One process among those that torchrun started for a sweep."""

import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

PATIENCE = timedelta(hours=6)  # until all workers have counted their share of the tokens
WAIT = 60.0  # seconds until the first worker, or torchrun's agent, must answer


class Worker(NamedTuple):
    """This process; alone, the first of one."""

    rank: int
    size: int
    local: int  # its rank among those of its machine

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Worker":
        """What torchrun says in RANK, WORLD_SIZE and LOCAL_RANK. Raises ValueError where that cannot be."""
        if "RANK" not in environment and "WORLD_SIZE" not in environment:
            return cls(0, 1, 0)
        for name in ("RANK", "WORLD_SIZE"):
            if name not in environment:
                raise ValueError(f"{name} is not set, as torchrun sets it; to work alone, unset RANK and WORLD_SIZE")
        size = _number(environment, "WORLD_SIZE")
        if size < 1:
            raise ValueError(f"WORLD_SIZE is {size}; there must be at least 1 worker")
        worker = cls(_number(environment, "RANK"), size, _number(environment, "LOCAL_RANK", "0"))
        if worker.rank >= size:
            raise ValueError(f"RANK is {worker.rank}, and WORLD_SIZE is {size}: RANK must be 0 to {size - 1}")
        return worker

    @contextmanager
    def together(self, device: torch.device) -> Iterator[None]:
        """Within, the workers can wait for one another. Raises ValueError where the first one is not to be found."""
        if self.size == 1:
            yield
            return
        _find_master(self.rank)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        try:
            yield
        finally:
            dist.destroy_process_group()


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    value = environment.get(name, default)
    if not re.fullmatch("[0-9]{1,9}", value):
        raise ValueError(f"{name} must be a whole number, as torchrun sets it; it is {value!a}")
    return int(value)


def _find_master(rank: int) -> None:
    """Look for the process that all others ask, before torch does: it would wait for hours, and print lines of C++."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise ValueError(f"{name} is not set, as torchrun sets it; to work alone, unset RANK and WORLD_SIZE")
    host, port = os.environ["MASTER_ADDR"], _number(os.environ, "MASTER_PORT")
    try:
        socket.getaddrinfo(host, port)
    except (OSError, UnicodeError, OverflowError) as error:
        raise ValueError(f"MASTER_ADDR is {host!a}, and no machine of that name is known") from error
    if rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return  # this process is the one that the others ask
    end = time.monotonic() + WAIT
    while True:
        try:
            socket.create_connection((host, port), timeout=WAIT).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                why = f"nothing has answered at {host}:{port} for {WAIT:.0f} seconds"
                raise ValueError(f"MASTER_ADDR and MASTER_PORT lead to no first worker: {why}") from error
            time.sleep(0.2)
