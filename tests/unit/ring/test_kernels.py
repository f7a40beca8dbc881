"""Which kernels a device gets, and what is said where there are none."""

import sys

import pytest
import torch
from tests.ringworld import GPU

from cloister.errors import InputError
from cloister.ring import _kernels, kernels_for
from cloister.ring._cpu import CpuKernels
from cloister.ring._cuda import CudaKernels, Fp64Kernels, scratch_bytes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_cpu_gets_its_own() -> None:
    kernels = kernels_for(CPU)
    assert isinstance(kernels, CpuKernels)
    assert kernels.name == "cpu"


@pytest.mark.parametrize(("name", "kind"), [("cpu", CpuKernels), ("cuda", CudaKernels), ("fp64", Fp64Kernels)])
def test_a_name_is_a_choice(name: str, kind: type) -> None:
    kernels = kernels_for(CPU, prefer=name)
    assert type(kernels) is kind
    assert kernels.name == name


@pytest.mark.parametrize(
    ("device", "name"),
    [(CPU, "opencl"), (CPU, ""), (CUDA, "cpu"), (torch.device("meta"), None), (torch.device("meta"), "cuda")],
)
def test_no_such_kernels(device: torch.device, name: str | None) -> None:
    with pytest.raises(InputError) as error:
        kernels_for(device, prefer=name)
    assert error.value.code == 2791


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_triton_is_asked_for_and_missing(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(InputError) as error:
        kernels_for(device, prefer="triton")
    assert error.value.code == 2790


def test_a_gpu_gets_tritons_where_it_is_there_and_torchs_where_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernels, "_cuda", lambda device: ("cuda", device))
    monkeypatch.setattr(_kernels, "_triton", lambda device: ("triton", device))
    assert kernels_for(CUDA) == ("triton", CUDA)
    monkeypatch.undo()
    monkeypatch.setattr(_kernels, "_cuda", lambda device: ("cuda", device))
    monkeypatch.setitem(sys.modules, "triton", None)
    assert kernels_for(CUDA) == ("cuda", CUDA)


def test_a_gpu_that_fails_its_trial_does_not_fall_back_unnoticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def inexact(device: torch.device) -> None:
        raise InputError(2792, got=device)

    monkeypatch.setattr(_kernels, "_triton", inexact)
    with pytest.raises(InputError) as error:
        kernels_for(CUDA)
    assert error.value.code == 2792


@pytest.mark.parametrize("compiled", [True, False])
def test_triton_runs_compiled_on_gpus_and_interpreted_on_cpus_only(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloister.ring import _triton

    assert _triton._INTERPRETED != GPU
    monkeypatch.setattr(_triton, "_INTERPRETED", not compiled)
    with pytest.raises(InputError) as error:
        kernels_for(CPU if compiled else CUDA, prefer="triton")
    assert error.value.code == 2791


def test_a_gpus_copies_may_be_larger() -> None:
    assert scratch_bytes(CUDA) > scratch_bytes(CPU)
