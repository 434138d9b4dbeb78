"""Tracing with `torch.fx`: layers stay modules, everything else is followed to its functions."""

import copy
import inspect
from typing import Any

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.padding import _CircularPadNd

from zscgan_ext.classifiers.graph import ADDED_MODULES

# Modules with weights, which quantization and batch-norm matching look for.
LAYERS: tuple[type[nn.Module], ...] = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.PReLU, nn.LayerNorm, nn.GroupNorm),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
NORMS = (_BatchNorm, _InstanceNorm)
PREFIX = "classifier."  # of the names in what is traced


class TakesImages(nn.Module):
    """A classifier that is called with images only, so that its other parameters are defaults.

    It is called, not only its `forward`, so that its own hooks run.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Any) -> Any:
        """Call the classifier."""
        return self.classifier(images)


class ClassifierTracer(fx.Tracer):
    """Follows a classifier into everything but its layers.

    Nodes of torch's own modules, such as `nn.ReLU`, are named as the module is.

    Args:
        images: name of the classifier's input.
    """

    def __init__(self, images: str) -> None:
        super().__init__()
        self.images = images
        self.module_name: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return True for a layer that does what its class does, without hooks."""
        is_layer = type(m) in LAYERS or (is_of_torch(m) and isinstance(m, NORMS))
        return is_layer and not has_hooks(m)

    def call_module(
        self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Follow a module; one of torch's own that looks at shapes becomes a node."""
        path = self.path_of_module(m)
        is_operator = is_of_torch(m) and not any(m.children())
        if self.is_leaf_module(m, path) or not is_operator:
            return super().call_module(m, forward, args, kwargs)
        name_before, self.module_name = self.module_name, path
        try:
            return self.follow(m, forward, args, kwargs)
        except Exception:
            if has_hooks(m):  # they would be lost where another module takes its place
                raise
            self.module_name = None
            return self.create_proxy("call_module", path, args, kwargs)
        finally:
            self.module_name = name_before

    def follow(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Follow a module of torch without submodules; some ask for dimensions first."""
        if isinstance(m, _CircularPadNd) and not has_hooks(m):
            return F.pad(args[0], pad=tuple(m.padding), mode="circular")
        if isinstance(m, nn.Softmax2d) and not has_hooks(m):
            return F.softmax(args[0], dim=-3)
        return forward(*args, **kwargs)

    def create_node(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any = None,
    ) -> fx.Node:
        """Name nodes as the classifier names its parts."""
        if kind == "placeholder":
            target = self.images
        elif kind in ("call_module", "get_attr"):
            target = target.removeprefix(PREFIX)
        elif kind != "output" and self.module_name is not None:
            name = self.module_name.removeprefix(PREFIX).replace(".", "_")
        return super().create_node(kind, target, args, kwargs, name, type_expr)


def symbolic_graph(model: nn.Module) -> fx.GraphModule:
    """Trace a model with `torch.fx`; the graph shares its tensors.

    Raises:
        Exception: of torch.fx or of the model's code, if it cannot be traced.
    """
    if isinstance(model, fx.GraphModule):  # tracing anew would only lose names
        return fx.GraphModule(model, copy.deepcopy(model.graph))
    traced = TakesImages(with_shared_tensors(model))
    graph = ClassifierTracer(name_of_images(model)).trace(traced)
    classifier = traced.classifier
    for name, value in vars(traced).items():
        if name.startswith("_tensor_constant"):  # tensors that the code itself made
            setattr(classifier, name, value)
    return with_free_names(classifier, graph)


def with_free_names(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """Give a graph its modules, renamed where a graph has an attribute of their name.

    Args:
        model: a copy, whose attributes are renamed in place.
        graph: of its modules.
    """
    for node in graph.nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        first, dot, rest = str(node.target).partition(".")
        if hasattr(fx.GraphModule, first) or first in ADDED_MODULES:
            node.target = f"{first}_{dot}{rest}"
            if not hasattr(model, f"{first}_"):
                setattr(
                    model, f"{first}_", vars(model)["_modules"].get(first) or getattr(model, first)
                )
    return fx.GraphModule(model, graph, type(model).__name__).eval()


def is_of_torch(module: nn.Module) -> bool:
    """Return True if a module's class is one of `torch.nn`."""
    return type(module).__module__.startswith("torch.nn.")


def has_hooks(module: nn.Module) -> bool:
    """Return True if a module runs hooks when it is called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def name_of_images(model: nn.Module) -> str:
    """Return the name of the first parameter of a model's `forward`."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return parameters[0].name if parameters and parameters[0].kind in kinds else "images"


def with_shared_tensors(model: nn.Module) -> nn.Module:
    """Copy a model without its tensors, so that tracing may leave something in its modules."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
