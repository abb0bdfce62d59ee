"""Writing a network as ONNX, TorchScript or safetensors, with its weights as they are or as eight-bit integers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor, nn

from security.errors import UsageError

Format = Literal["onnx", "torchscript", "safetensors"]
FILES: Final[dict[Format, str]] = {
    "onnx": "model.onnx",
    "torchscript": "model.pt",
    "safetensors": "model.safetensors",
}
_OPSET: Final = 20


def write(network: nn.Module, example: Tensor, format_: Format, path: Path, *, quantise: bool) -> None:
    """Write a network.

    Args:
        network: in evaluation mode.
        example: (n, *input_shape), n at least 2: the number of examples stays open.
        format_: how.
        path: of the file.
        quantise: weights of linear layers as int8, scaled a layer; what they are multiplied with is rounded while it
            runs (dynamic quantisation). ONNX alone.

    Raises:
        UsageError: a library is missing, the network can't be written so, or this form has no such weights.
    """
    if quantise and format_ != "onnx":
        raise UsageError(f"--quantise int8: not for --format {format_}; allowed: onnx")
    if format_ == "safetensors":
        from safetensors.torch import save_file

        # Weights that a network has twice are written twice.
        save_file({name: value.detach().clone() for name, value in network.state_dict().items()}, path)
        return
    if format_ == "torchscript":
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing calls everything that depends on a shape a risk
            torch.jit.save(torch.jit.freeze(torch.jit.trace(network, example, check_trace=False)), str(path))  # type: ignore[no-untyped-call]
        return
    _write_onnx(network, example, path)
    if quantise:
        _quantise(path)


def runner(format_: Format, path: Path, network: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a written file computes: run by onnxruntime, by TorchScript, or by the network with the file's weights.

    Raises:
        UsageError: a library is missing.
    """
    if format_ == "onnx":
        session = onnx_session(path)
        return lambda x: torch.from_numpy(session.run(None, {"inputs": x.numpy()})[0])
    if format_ == "torchscript":
        loaded: Callable[[Tensor], Tensor] = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
        return loaded
    from safetensors.torch import load_file

    network.load_state_dict(load_file(path))
    return network


def onnx_session(path: Path):  # type: ignore[no-untyped-def]
    """An onnxruntime session of a file, on the processor with one thread.

    Raises:
        UsageError: onnxruntime isn't installed, or the file isn't a model.
    """
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        raise UsageError("ONNX models need onnxruntime; pip install 'veil-fl[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        raise UsageError(f"{path}: is not an ONNX model that can be run ({type(error).__name__})") from error


def _write_onnx(network: nn.Module, example: Tensor, path: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError("--format onnx: needs onnx and onnxscript; pip install 'veil-fl[onnx]'") from error
    for name in ("onnxscript", "torch.onnx"):  # the latter warns of libraries that aren't installed
        logging.getLogger(name).setLevel(logging.ERROR)
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=_OPSET,
                input_names=["inputs"],
                output_names=["logits"],
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
        assert program is not None
        program.save(str(path), external_data=False)
    except UsageError:
        raise
    except Exception as error:  # the exporter's errors have no common class
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(
            f"--format onnx: this network can't be written so ({type(error).__name__}: {reason})"
        ) from error


def _quantise(path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

    small = path.with_suffix(".int8.onnx")
    before = logging.getLogger().level
    try:
        logging.getLogger().setLevel(logging.ERROR)  # it speaks through the root logger
        quantize_dynamic(path, small, weight_type=QuantType.QInt8)
        small.replace(path)
    except Exception as error:  # its errors have no common class
        raise UsageError(f"--quantise int8: this network's weights can't be ({type(error).__name__})") from error
    finally:
        logging.getLogger().setLevel(before)
        small.unlink(missing_ok=True)
