"""``report/MODEL_CARD.md``: what a model is for, what it was made from, how good it is, where it fails.

The headings follow Mitchell et al., "Model Cards for Model Reporting" (2019), as far as they apply.
"""

from __future__ import annotations

from pathlib import Path

from serving.manifest import Manifest, Tensor


def model_card(manifest: Manifest, *, summary: str, intended_use: str, limits: str, pictures: list[Path]) -> str:
    """The card as Markdown; ``pictures`` lie beside it."""
    metrics = "\n".join(f"| {name} | {metric.value:.4f} | {metric.data} |" for name, metric in manifest.metrics.items())
    recipe = "\n".join(f"* {key.replace('_', ' ')}: {value}" for key, value in manifest.recipe.items())
    labels = f"\nLabels: {', '.join(manifest.labels)}.\n" if manifest.labels else ""
    shown = "\n\n".join(f"![{path.stem.replace('_', ' ')}]({path.name})" for path in pictures)
    minutes = manifest.duration_seconds / 60
    tools = ", ".join(f"{name} {version}" for name, version in manifest.toolchain.items())
    return (
        f"""# {manifest.model}, version {manifest.version}

{summary}

## Intended use

{intended_use}

## Inputs and outputs

{_table(manifest.inputs, "input")}

{_table(manifest.outputs, "output")}
{labels}
## Data

{manifest.data.name}; sha256 of the arrays `{manifest.data.sha256}`. The validation part is taken from the training
set. The official test set took no part in training, nor in choosing the epoch that was kept.

## Figures

| figure | value | measured on |
| --- | ---: | --- |
{metrics}

Largest absolute difference from Keras at batch sizes {", ".join(map(str, manifest.parity.batch_sizes))}:
SavedModel {manifest.parity.saved_model:.1e}, onnxruntime {manifest.parity.onnx:.1e};
allowed is {manifest.parity.tolerance:.0e}.

## Recipe

{recipe}
* seed: {manifest.seed}
* training time: {minutes:.1f} minutes
* made with: {tools}

## Limits

{limits}

{shown}
""".rstrip()
        + "\n"
    )


def _table(tensors: tuple[Tensor, ...], kind: str) -> str:
    rows = [
        f"| `{tensor.name}` | {tensor.dtype} | ({', '.join(_axis(size) for size in tensor.shape)}) |"
        for tensor in tensors
    ]
    return "\n".join([f"| {kind} | dtype | shape |", "| --- | --- | --- |", *rows])


def _axis(size: int | None) -> str:
    return "any" if size is None else str(size)
