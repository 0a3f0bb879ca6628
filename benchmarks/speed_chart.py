"""Draws the chart of the README from the committed results: images/s of vitfast and of other engines.

    python benchmarks/speed_chart.py     # writes benchmarks/results/speed.svg

The picture is text (SVG) and a function of the results alone, so that a test can compare it with them.
"""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SOURCE, PICTURE = RESULTS / "accelerate_base-xeon-avx512-2threads.json", RESULTS / "speed.svg"
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}
NAMES = {
    "vitfast": "vitfast",
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "torchao": "torchao",
    "compile": "torch.compile",
    "zentorch": "zentorch",
    "eager": "PyTorch eager",
}
WIDTH, ROW, LEFT = 720, 24, 130
STYLE = (
    "text{font:13px sans-serif;fill:#24292f}.other{fill:#9aa4ae}.vitfast{fill:#0a7d5a}.bold{font-weight:bold}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.other{fill:#6e7781}.vitfast{fill:#2bb584}}"
)


def draw(source: Path = SOURCE) -> str:
    """Returns the chart as SVG: a group of bars for each precision, the fastest engine first."""
    outcomes = {one["precision"]: one for one in json.loads(source.read_text())["outcomes"]}
    speeds: dict[str, dict[str, float]] = {}
    for precision in filter(outcomes.__contains__, PRECISIONS):
        engines = [one for one in outcomes[precision]["standings"] if not one["is_limit"]]
        speeds[precision] = {one["subject"]: one["images_per_s"] for one in engines}
    scale = (WIDTH - LEFT - 70) / max(max(group.values()) for group in speeds.values())
    title = "ViT-B/16, batch 8, images/s on two cores of an Intel Xeon (AVX-512)"
    parts, y = [f'<text x="0" y="16" class="bold">{title}</text>'], 30
    for precision, group in speeds.items():
        parts.append(f'<text x="0" y="{y + 16}" class="bold">{PRECISIONS[precision]}</text>')
        for engine, speed in sorted(group.items(), key=lambda item: -item[1]):
            y += ROW
            kind = "vitfast" if engine == "vitfast" else "other"
            parts.append(
                f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{NAMES[engine]}</text>'
                f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{speed * scale:.1f}" height="{ROW - 6}" rx="2"/>'
                f'<text x="{LEFT + speed * scale + 8:.1f}" y="{y + 13}">{speed:.3g}</text>'
            )
        y += ROW + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(draw())
