"""A certified model as two files: loaded without its code, trained as it would be, and put back."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests.clipped_sums import engine_for
from torch import Tensor, nn
from torch.nn import functional

from cloister.errors import CloisterError
from cloister.privacy._certificate import Certificate, bind, check_model
from cloister.privacy._certified import CertifiedLoss
from cloister.privacy._clipping import Flat
from cloister.privacy._graph import Spec
from cloister.privacy._program import read_program, save_program, weights_of
from cloister.privacy._weights import read_weights, write_weights

WORDS, LENGTH, ROWS = 12, 4, 5


class Small(nn.Module):
    """Tied weights, a frozen parameter, buffers that are in the state and that are not, a table without a name."""

    scale: Tensor
    places: Tensor
    graph: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner = nn.Embedding(WORDS, 6), nn.Linear(6, 6)
        self.inner.bias.requires_grad_(False)
        self.out = nn.Linear(6, WORDS, bias=False)
        self.out.weight = self.words.weight
        self.graph = nn.LayerNorm(6)  # called as something of the certified module is
        self.register_buffer("scale", torch.full((6,), 0.5))
        self.register_buffer("places", torch.arange(LENGTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        places = self.places.float().unsqueeze(-1) * torch.tensor([1.0, 0, 0, 0, 0, 1]) / 8
        return self.out(self.graph(torch.tanh(self.inner(self.words(x) + places)) * self.scale))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    scores = model(batch)[:, :-1]
    return functional.cross_entropy(scores.transpose(1, 2), batch[:, 1:], reduction="none").mean(1)


BATCH = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) * 5 % WORDS


@pytest.fixture(scope="module")
def small() -> tuple[Small, Certificate]:
    torch.manual_seed(3)
    model = Small()
    return model, check_model(model, loss, BATCH)


def gradient(program: CertifiedLoss) -> Tensor:
    engine = engine_for(program, Flat(0.5), ROWS)
    engine.forward(program.__call__, ((BATCH,), {}), ROWS).mean().backward()
    engine.gather(torch.arange(ROWS))
    engine.release()
    made = torch.cat([p.grad.flatten() for p in program.parameters() if p.requires_grad])  # type: ignore[union-attr]
    for parameter in program.parameters():
        parameter.grad = None
    return made


def test_a_program_is_the_model_without_its_code(small: tuple[Small, Certificate], tmp_path: Path) -> None:
    model, certificate = small
    save_program(certificate, model, tmp_path / "made" / "here")
    program = read_program(tmp_path / "made" / "here")
    bound = bind(certificate, model, loss)
    assert torch.equal(program(BATCH), bound(BATCH))
    assert torch.equal(gradient(program), gradient(bound))
    for one in (program, bound):
        named = {name: each.requires_grad for name, each in one.named_parameters()}
        assert named == {name: each.requires_grad for name, each in model.named_parameters()}
        assert one.state_dict().keys() == model.state_dict().keys() | {"places"}
    assert program.get_parameter("out.weight") is program.get_parameter("words.weight")
    assert bound.get_parameter("inner.weight") is model.inner.weight


def test_its_names_stay_the_models_where_a_loss_has_tensors_too(tmp_path: Path) -> None:
    class Weighted(nn.Module):
        weight: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.tensor([1.0, 2.0, 3.0]))

        def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return functional.cross_entropy(model(batch[0]), batch[1], weight=self.weight, reduction="none")

    batch = torch.randn(4, 6), torch.tensor([0, 1, 2, 1])
    model, weighted = nn.Sequential(nn.Linear(6, 3)), Weighted()
    certificate = check_model(model, weighted, batch)
    save_program(certificate, model, tmp_path, loss=weighted)
    program = read_program(tmp_path)
    assert list(program.state_dict()) == ["0.weight", "0.bias", "loss.weight"]
    assert torch.equal(program(batch), bind(certificate, model, weighted)(batch))


def test_trained_weights_go_back_into_the_model(small: tuple[Small, Certificate], tmp_path: Path) -> None:
    model, certificate = small
    save_program(certificate, model, tmp_path)
    program = read_program(tmp_path)
    with torch.no_grad():
        program.get_parameter("inner.weight").add_(1)
    save_program(certificate, program, tmp_path)
    found = safetensors.torch.load_file(tmp_path / "weights.safetensors")  # the format's own reader
    assert found.keys() == weights_of(program).keys() == {
        "words.weight", "inner.weight", "inner.bias", "graph.weight", "graph.bias", "scale", "places"
    }  # fmt: skip
    assert all(torch.equal(found[name], each) for name, each in weights_of(program).items())
    other = Small()
    missing, unexpected = other.load_state_dict(found, strict=False)
    assert (missing, unexpected) == (["out.weight"], ["places"])
    assert torch.equal(bind(certificate, other, loss)(BATCH), program(BATCH))
    with pytest.raises(CloisterError) as refused:
        save_program(check_model(nn.Linear(6, 3), classes, (torch.randn(3, 6), torch.tensor([0, 1, 2]))), program, "")
    assert refused.value.code == 5832


def classes(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def test_weights_that_are_no_longer_tied_are_refused(small: tuple[Small, Certificate]) -> None:
    model = Small()
    model.out.weight = nn.Parameter(model.words.weight.detach().clone())
    with pytest.raises(CloisterError) as refused:
        bind(small[1], model, loss)
    assert (refused.value.code, "not tied" in refused.value.what) == (5832, True)


def test_weights_are_written_as_others_write_them() -> None:
    dtypes = (torch.bool, torch.int64, torch.float32, torch.bfloat16, torch.uint8, torch.float64)
    tensors = {f"layer {at}": (torch.arange(6).reshape(2, 3) % 2).to(dtype) for at, dtype in enumerate(dtypes)}
    tensors |= {"none": torch.zeros(0, 4), "one": torch.tensor(2.5)}
    data = write_weights(tensors)
    specs = {name: spec(each) for name, each in tensors.items()}
    for found in (safetensors.torch.load(data), read_weights(data, specs), read_weights(other(tensors), specs)):
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], each) and found[name].dtype == each.dtype for name, each in tensors.items())
    assert read_weights(write_weights({}), {}) == {}


def other(tensors: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save(tensors, metadata={"format": "pt"})


def spec(tensor: Tensor) -> Spec:
    return Spec(dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))


def test_an_element_type_that_files_do_not_have_is_refused() -> None:
    with pytest.raises(CloisterError) as refused:
        write_weights({"one": torch.zeros(2, dtype=torch.complex64)})
    assert refused.value.code == 2858
