"""Model files (.qsr): trained or packed networks on the disk.

A `.qsr` file is a safetensors file whose metadata says what it is:

    format, format_version   "qsr", and the version of this layout
    kind                     "trained" (float weights, steps, tau; full precision perhaps in
                             float16), "packed" (bit planes), or "network" (bit planes of a network
                             that somebody brought)
    config                   of a QuantSR: which network, as JSON of its configuration
    class, layers, plan      of another network: its class, the bits of each packed layer, and how
                             its regions run (`qsr.integer.plan_json`); format version 2
    graph                    of such a network: all that it calls (`qsr.integer.graph_json`), or
    no_graph                 why that cannot be written, so that its class is needed to load it
    sha256                   of all of this and the tensors, so that a damaged file is noticed
    note                     free text: data, steps, scores

Nothing in it is executed on load: no pickle, no code. It appears on disk whole or not at all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_bytes
from torch import Tensor, nn

from .. import baselines as baselines  # whose quantizers a file may name
from ..backbone import QuantSR
from ..config import ConvConfig, NetworkConfig, SwinConfig
from ..integer import graph_json, layer_json
from ..integer.depths import DepthProgram
from ..integer.executor import names_of
from ..integer.packing import PackedModel, pack_empty
from ..integer.plan import Plan
from ..integer.plan_json import from_json, to_json
from ..integer.planned import Planned, hooked
from ..integer.stored import StoredNetwork
from ..system.errors import first_line
from ..system.files import replacing

FILE_VERSION = 1  # of a QuantSR
NETWORK_VERSION = 2  # of another network
FAMILIES = {cls.family: cls for cls in (ConvConfig, SwinConfig)}

# Configuration <-> JSON ---------------------------------------------------------------------------


def config_to_json(config: NetworkConfig) -> dict:
    """The configuration as a JSON object, with its family."""
    return {"family": config.family, **dataclasses.asdict(config)}


def config_from_json(data: dict) -> NetworkConfig:
    """The inverse of `config_to_json`. Raises ValueError for a family or field it does not know."""
    data = dict(data)
    family = data.pop("family", None)
    if family not in FAMILIES:
        raise ValueError(
            f"the network family is {family!r}; this version knows {', '.join(FAMILIES)}. "
            "Update qsr, or check the file."
        )
    known = {field.name for field in dataclasses.fields(FAMILIES[family])}
    unknown = sorted(set(data) - known)
    if unknown:
        raise ValueError(
            f"the configuration has the field {unknown[0]!r}, which this version does not know. "
            "Update qsr, or check the file."
        )
    return FAMILIES[family](**data)


# Model files --------------------------------------------------------------------------------------


def save(
    path: str | os.PathLike,
    model: QuantSR | PackedModel | Planned,
    note: str = "",
    overwrite: bool = True,
    half: bool = False,
) -> None:
    """Write a trained or packed network to a .qsr file, or a packed network of your own.

    half: weights in float16, half the bytes; for full precision only, since a learned step that is
    rounded gives other codes. Of a network of your own the file has all that `load` needs, unless
    its forward calls something that is no data, or one of its modules has a hook: then one warning
    says what, and `load` wants the network again (`into`), with its hooks. Raises TypeError for any
    other module, ValueError if the file can't be written, or `half` does not fit: a quantised
    network, or weights beyond float16's range.
    """
    network: nn.Module = model.network if isinstance(model, PackedModel) else model
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"`model` is a {type(model).__name__}, no network; it is qsr.save(path, model)."
        )
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    metadata = {"format": "qsr", "format_version": str(FILE_VERSION), "note": note}
    if isinstance(network, QuantSR):
        tensors = _halved(tensors, network.config) if half else tensors
        metadata["kind"] = "packed" if isinstance(model, PackedModel) else "trained"
        metadata["config"] = json.dumps(config_to_json(network.config))
    elif isinstance(network, Planned) and not half:
        metadata |= {"format_version": str(NETWORK_VERSION), "kind": "network"}
        metadata |= {"class": network.class_name, "layers": _layers(network)}
        metadata["plan"] = json.dumps(to_json(network.plan))
        described, constants = _graph(network)
        metadata |= described
        tensors = {name: tensors[name] for name in _once(network)}
        tensors |= {name: t.cpu().contiguous() for name, t in constants.items()}
        tensors = {name: t.clone() for name, t in tensors.items()}  # tied ones: safetensors' rule
    else:
        raise TypeError(
            f"`model` is a {type(model).__name__}; .qsr files hold a QuantSR, its packed form, or "
            "what qsr.pack makes of another network. Save the state_dict() of other modules with "
            "safetensors."
        )
    metadata["sha256"] = digest(metadata, tensors)
    # Not save_file, whose own temporary file would stay when the process is killed.
    content = _with_sorted_header(as_bytes(tensors, metadata))
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(content)


def _once(network: nn.Module) -> list[str]:
    """The names in its state_dict, of a layer that has several names only by the first."""
    modules = {name for name, _ in network.named_modules()}
    return [name for name in network.state_dict() if name.rpartition(".")[0] in modules]


def _graph(network: Planned) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What a file says of all that a network calls, or, with a warning, why it does not; and the
    constants that are called for.
    """
    graph, why = network.plan.graph, network.plan.reason
    constants = {} if graph is None else graph_json.constants(graph, network)
    if graph is not None:
        try:
            for name, module in network.named_modules():
                if hooked(module):
                    told = f"{name or 'the network'!r} has a hook, which is code"
                    raise graph_json.Unstorable(told)
            return {"graph": json.dumps(graph_json.describe(graph, network))}, constants
        except graph_json.Unstorable as error:
            why = str(error)
    warnings.warn(
        f"the file needs the network again, qsr.load(path, into=network): {why}.", stacklevel=3
    )
    return {"no_graph": why}, constants


def _with_sorted_header(content: bytes) -> bytes:
    """Order the metadata of a safetensors file by name, so that equal models are equal files.

    safetensors writes it in an order that differs from call to call. The header is a length in 8
    bytes and JSON of that length; blanks at its end are allowed.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    assert len(text) <= end - 8  # by the rules of JSON: only the order is another one
    return content[:8] + text.ljust(end - 8) + content[end:]


def _halved(tensors: dict[str, Tensor], config: NetworkConfig) -> dict[str, Tensor]:
    if config.bits is not None:
        raise ValueError(
            "`half` is for full precision; rounding the steps of a quantised network would change "
            "its codes. Pack it instead, which makes it smaller still."
        )
    largest = torch.finfo(torch.float16).max
    for name, t in tensors.items():
        if t.is_floating_point() and not (t.abs() <= largest).all():
            raise ValueError(f"{name!r} has values that float16 cannot hold; save without `half`.")
    return {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}


def load_model(path: str | os.PathLike) -> QuantSR | PackedModel | StoredNetwork:
    """Read a .qsr file: a QuantSR ("trained"), a PackedModel ("packed"), or a packed network of
    somebody's own ("network"), in eval mode, on the CPU.

    Raises ValueError (one line) if the file is missing, damaged, foreign, or of another version, or
    if it needs its network (`load_network`).
    """
    metadata, tensors = _read_model(path)
    if metadata.get("kind") == "network":
        return _stored(path, metadata, tensors)
    try:
        config = config_from_json(json.loads(metadata["config"]))
        if metadata["kind"] not in ("trained", "packed"):
            raise ValueError(f"its kind is {metadata['kind']!r}")
        model = network_of(config, tensors, packed=metadata["kind"] == "packed")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _misfit(path, error) from error
    return model.eval()


def _stored(
    path: str | os.PathLike, metadata: dict[str, str], tensors: dict[str, Tensor]
) -> StoredNetwork:
    """The network of a file that has its graph."""
    if "graph" not in metadata:
        why = f" ({metadata['no_graph']})" if "no_graph" in metadata else ""
        raise ValueError(
            f"{path} holds a packed {metadata.get('class')}, whose class is not in the file{why}. "
            "Give the network, quantised as it was: qsr.load(path, into=qsr.quantize(network, "
            "bits))."
        )
    try:
        from_json(json.loads(metadata["plan"]))
        graph, layers = json.loads(metadata["graph"]), json.loads(metadata["layers"])
        # Copies: where in memory a tensor begins, a file's anywhere, tips last bits of a product.
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        network = StoredNetwork(metadata["class"], graph, layers, tensors)
        _fill(network, tensors, assign=True)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise _misfit(path, error) from error
    return network


def _fill(network: nn.Module, tensors: dict[str, Tensor], assign: bool = False) -> None:
    """Give a network the values of a file, or the tensors themselves. Raises ValueError (one line)
    if they do not fit.
    """
    expected = network.state_dict()
    for name in sorted(set(_once(network)) - set(tensors)):
        raise ValueError(f"{name!r} is missing")
    for name in sorted(set(tensors) - set(expected)):
        raise ValueError(f"{name!r} is not of this network")
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, expected[name], half=False)
    network.load_state_dict(tensors, strict=False, assign=assign)


def _misfit(path: str | os.PathLike, error: Exception) -> ValueError:
    return ValueError(
        f"{path} does not fit its own description ({reason(error)}). Save the model again."
    )


def load_network(path: str | os.PathLike, into: nn.Module) -> nn.Module:
    """Read a packed network of your own: a packed copy of `into` with the values of the file.

    into: the network, quantised with the same options as before it was packed (`qsr.quantize`);
    its values do not matter. Raises ValueError (one line) as `load_model`, or if layers, bits or
    shapes are other ones.
    """
    metadata, tensors = _read_model(path)
    if metadata.get("kind") != "network":
        raise ValueError(f"{path} holds a QuantSR, which needs no `into`: qsr.load(path).")
    network = pack_empty(into)
    assert isinstance(network, Planned)
    try:
        from_json(json.loads(metadata["plan"]))
        theirs, ours = json.loads(metadata["layers"]), json.loads(_layers(network))
        for name in sorted(set(theirs) | set(ours)):
            if theirs.get(name) != ours.get(name):
                raise ValueError(
                    f"the layer {name!r} is {theirs.get(name)} in the file and {ours.get(name)} in "
                    "`into`"
                )
        known = network.state_dict()  # constants that are no part of it the class makes anew
        own = graph_json.constants(network.plan.graph, network) if network.plan.graph else {}
        _fill(network, {n: t for n, t in tensors.items() if n in known or n not in own})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit `into`: {reason(error)}.") from error
    return network


def load_regions(path: str | os.PathLike) -> tuple[list[Plan], nn.Module]:
    """The regions of a packed network of somebody's own, and its packed layers by their names: what
    can be had without the class of the network. Of a packed QuantSR its plan, which follows from
    its configuration, and its network. Raises ValueError (one line).
    """
    metadata, tensors = _read_model(path)
    if metadata.get("kind") != "network":
        program = getattr(load_model(path), "program", None)
        if isinstance(program, DepthProgram):
            return [program.plan], program.network
        raise ValueError(
            f"{path} holds a QuantSR that runs without a plan of steps; name a file of a packed "
            "network."
        )
    try:
        plans, layers = from_json(json.loads(metadata["plan"])), nn.Module()
        described = json.loads(metadata["layers"])
        for name in dict.fromkeys(name for plan in plans for name in names_of(plan)):
            held = layer_json.held_by(name, tensors)
            layer = layer_json.empty_layer(described[name], held)
            layer.load_state_dict(held)
            layer_json.put(layers, name, layer)
        for key, tensor in tensors.items():  # slopes and factors of finishes
            if any(key == v for plan in plans for s in plan.steps for _, v in s.finish):
                layer_json.put_tensor(layers, key, tensor)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise _misfit(path, error) from error
    return plans, layers


def _layers(network: nn.Module) -> str:
    """What the tensors of packed layers do not say."""
    return json.dumps(layer_json.describe(network), sort_keys=True)


def _read_model(path: str | os.PathLike) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a .qsr file that is whole and of a version that is known."""
    metadata, tensors = _read_safetensors(path)
    if metadata.get("format") != "qsr":
        raise ValueError(f"{path} is a safetensors file but no qsr model: it does not say so.")
    version = NETWORK_VERSION if metadata.get("kind") == "network" else FILE_VERSION
    if metadata.get("format_version") != str(version):
        raise ValueError(
            f"{path} has format version {metadata.get('format_version')!r}; this version of qsr "
            f"reads {version}. Update qsr, or pack the model again."
        )
    if metadata.get("sha256") != digest(metadata, tensors):
        raise ValueError(f"{path} is damaged: its checksum does not match. Fetch it again.")
    return metadata, tensors


@overload
def network_of(config: NetworkConfig, tensors: dict[str, Tensor]) -> QuantSR: ...
@overload
def network_of(
    config: NetworkConfig, tensors: dict[str, Tensor], packed: bool
) -> QuantSR | PackedModel: ...
def network_of(
    config: NetworkConfig, tensors: dict[str, Tensor], packed: bool = False
) -> QuantSR | PackedModel:
    """The network of a configuration with the values of a file.

    Nothing is allocated before it is known that the file holds as much: a few changed bytes in a
    description must not cost memory or minutes. Raises ValueError (one line) if names, shapes or
    types are other ones, or values that no training leaves: not finite, steps of 0, an order of
    blocks that is none.
    """
    held = 8 * sum(t.numel() * t.element_size() for t in tensors.values())
    if config.body_weights > held or config.body_layers > len(tensors):
        raise ValueError(
            f"it describes {config.body_layers} layers with {config.body_weights} weights, and "
            f"holds {len(tensors)} tensors with {held} bits"
        )
    model: QuantSR | PackedModel = PackedModel.empty(config) if packed else QuantSR(config)
    network = model.network if isinstance(model, PackedModel) else model
    expected = network.state_dict()
    for name in sorted(set(expected) ^ set(tensors)):
        raise ValueError(f"{name!r} is {'missing' if name in expected else 'not of this network'}")
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, expected[name], half=config.bits is None)
    network.load_state_dict(tensors)
    if sorted(network.order) != list(range(config.blocks)):
        raise ValueError(f"its order of blocks is {network.order}")
    return model


def _check_tensor(name: str, tensor: Tensor, expected: Tensor, half: bool) -> None:
    """Raises ValueError unless a tensor of a file can be what the network expects."""
    if tensor.shape != expected.shape:
        shapes = f"{list(tensor.shape)}, not {list(expected.shape)}"
        raise ValueError(f"{name!r} has the shape {shapes}")
    types = (expected.dtype, torch.float16 if half else expected.dtype)
    if tensor.dtype not in types:
        raise ValueError(f"{name!r} is {tensor.dtype}, not {expected.dtype}")
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise ValueError(f"{name!r} has values that are not finite")


def reason(error: Exception) -> str:
    """The line of an error that says what is wrong: load_state_dict has a title line first."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[min(1, len(lines) - 1)].strip().rstrip(".")


def describe(path: str | os.PathLike) -> dict[str, str]:
    """The metadata of a .qsr file without its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _read_safetensors(path: str | os.PathLike) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | os.PathLike, error: Exception) -> ValueError:
    if not Path(path).exists():
        return ValueError(
            f"{path} does not exist; `qsr models` lists the names that come with qsr."
        )
    if Path(path).is_dir():
        return ValueError(f"{path} is a folder; name a .qsr file in it.")
    return ValueError(
        f"{path} is no qsr model: it cannot be read as safetensors "
        f"({first_line(error)}). Pickled checkpoints (.pt, .pth) are not loaded."
    )


def digest(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """sha256 of a .qsr file's contents: metadata and tensors, each in the order of the names."""
    described = {key: value for key, value in metadata.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# Training checkpoints -----------------------------------------------------------------------------
