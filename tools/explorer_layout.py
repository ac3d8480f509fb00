"""The page of `tools/explorer.py` as the browser has it: HTML, CSS and a script; and the curve."""

from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from vmp.visualization.style import NEGATIVE, ORANGE, POSITIVE, RED

KINDS = ("frames", "differences", "attention", "prompts")
SCALES = {
    "differences": '<span class="vmp-scale vmp-signed"></span>± <span data-part="limit"></span>',
    "attention": '<span class="vmp-scale vmp-f"></span>0 to 1',
}


def layout() -> str:
    """Return the part of the page that is filled by the script: it stays, its pictures change."""
    cells = "".join(
        f'<figure><div class="vmp-cell"><img data-part="{kind}" decoding="sync" alt="{kind}, one '
        f'step"></div><figcaption>{kind}</figcaption></figure>'
        for kind in KINDS
    )
    strips = "".join(
        f'<div class="vmp-name">{kind}<small>{SCALES.get(kind, "")}</small></div>'
        f'<div class="vmp-strip"><img data-part="{kind}" decoding="sync" alt="{kind}">'
        '<div class="vmp-mark"></div></div>'
        for kind in KINDS
    )
    return (
        f'<div class="vmp-view"><div class="vmp-player">{cells}</div>'
        '<div class="vmp-bar"><button type="button" class="vmp-play">play</button>'
        '<input type="range" class="vmp-step" min="0" value="0" aria-label="step">'
        '<span class="vmp-where"></span></div>'
        f'<div class="vmp-strips"><div></div><div class="vmp-labels"></div>{strips}</div>'
        '<div class="vmp-lower"><div class="vmp-curve" data-part="curve"></div>'
        '<div class="vmp-facts" data-part="facts"></div></div></div>'
    )


# `element`, `props` and `watch` are Gradio's. A value has what is new, by name: addresses of
# pictures, pieces of HTML, the clip's labels, or a file to save.
SCRIPT = """
const all = (what) => element.querySelectorAll(what);
const view = () => element.querySelector('.vmp-view');
const play = () => element.querySelector('.vmp-play');
let labels = [], step = 0, period = 200, timer = null;
function go(to) {
  step = labels.length ? (to + labels.length) % labels.length : 0;
  view().style.setProperty('--step', step);
  element.querySelector('.vmp-step').value = step;
  element.querySelector('.vmp-where').textContent = labels[step] ? 'frame ' + labels[step] : '';
}
function run(on) {
  clearInterval(timer);
  timer = on ? setInterval(() => go(step + 1), period) : null;
  play().textContent = on ? 'pause' : 'play';
}
function take(clip) {
  labels = clip.labels;
  period = clip.period;
  view().style.setProperty('--steps', labels.length);
  view().style.setProperty('--ratio', clip.ratio);
  element.querySelector('.vmp-step').max = labels.length - 1;
  element.querySelector('.vmp-labels').replaceChildren(...labels.map((text) => {
    const cell = document.createElement('span');
    cell.textContent = text;
    return cell;
  }));
  go(Math.min(step, labels.length - 1));
  run(timer !== null);
}
function save(file) {
  const link = document.createElement('a');
  link.href = file.address;
  link.download = file.name;
  link.click();
}
function show() {
  const value = props.value || {};
  if (value.clip) take(value.clip);
  for (const [name, part] of Object.entries(value.parts || {}))
    for (const place of all(`[data-part="${name}"]`))
      if (place.tagName === 'IMG') place.src = part; else place.innerHTML = part;
  if (value.save) save(value.save);
}
element.addEventListener('click', (event) => {
  if (event.target.closest('.vmp-play')) run(timer === null);
  const strip = event.target.closest('.vmp-strip');
  if (!strip) return;
  const box = strip.getBoundingClientRect();
  run(false);
  go(Math.floor((event.clientX - box.left) / box.width * labels.length));
});
element.addEventListener('input', (event) => {
  if (event.target.matches('.vmp-step')) { run(false); go(Number(event.target.value)); }
});
show();
watch('value', show);
"""

STYLE = f"""
.vmp-view {{ --step: 0; --steps: 8; --ratio: 1; color: var(--body-text-color); }}
.vmp-view img {{ display: block; max-width: none; margin: 0; }}
.vmp-player {{ display: grid; grid-template-columns: repeat(4, 1fr); gap: 8px; }}
.vmp-player figure {{ margin: 0; min-width: 0; }}
.vmp-player figcaption {{ text-align: center; font-size: 14px; padding: 2px 0; }}
.vmp-cell {{ overflow: hidden; aspect-ratio: var(--ratio); background: #8883; }}
.vmp-cell img {{
  width: calc(100% * var(--steps)); height: 100%;
  transform: translateX(calc(-100% * var(--step) / var(--steps)));
}}
.vmp-bar {{ display: flex; align-items: center; gap: 12px; margin: 4px 0 14px; }}
.vmp-play {{
  min-width: 76px; padding: 4px 14px; border-radius: 6px; cursor: pointer; font-size: 15px;
  border: 1px solid var(--border-color-primary);
  background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color);
}}
.vmp-step {{ flex: 1; min-width: 60px; accent-color: {ORANGE}; }}
.vmp-where {{ min-width: 84px; font-size: 14px; font-variant-numeric: tabular-nums; }}
.vmp-strips {{ display: grid; grid-template-columns: 96px minmax(0, 1fr); gap: 4px 8px; }}
.vmp-name {{ align-self: center; text-align: right; font-size: 14px; line-height: 1.25; }}
.vmp-name small {{ display: block; font-size: 12px; white-space: nowrap; }}
.vmp-scale {{
  display: inline-block; width: 34px; height: 9px; margin-right: 4px; border: 1px solid #8888;
}}
.vmp-signed {{ background: linear-gradient(to right, {", ".join(NEGATIVE)}, #fff,
  {", ".join(POSITIVE)}); }}
.vmp-f {{ background: linear-gradient(to right, #dddcdc, #f7a889, #e26952); }}
.vmp-labels {{ display: grid; grid-auto-columns: minmax(0, 1fr); grid-auto-flow: column; }}
.vmp-labels span {{ text-align: center; font-size: 12px; font-variant-numeric: tabular-nums; }}
.vmp-strip {{ position: relative; cursor: pointer; background: #8883;
  aspect-ratio: calc(var(--ratio) * var(--steps)); }}
.vmp-strip img {{ width: 100%; height: 100%; }}
.vmp-strip::after {{
  content: ""; position: absolute; inset: 0; pointer-events: none;
  background-image: linear-gradient(to right, #fff 2px, transparent 2px);
  background-size: calc(100% / var(--steps)) 100%;
}}
.vmp-mark {{
  position: absolute; z-index: 1; top: 0; bottom: 0; box-sizing: border-box;
  border: 2px solid {ORANGE}; width: calc(100% / var(--steps));
  left: calc(100% * var(--step) / var(--steps));
}}
.vmp-lower {{ display: flex; flex-wrap: wrap; gap: 8px 28px; margin-top: 14px; }}
.vmp-curve {{ flex: 1 1 300px; max-width: 620px; min-width: 0; }}
.vmp-curve svg {{ display: block; width: 100%; height: auto; }}
.vmp-facts {{ flex: 1 1 230px; font-size: 14px; }}
.vmp-facts table, .vmp-facts tr, .vmp-facts td {{ border: 0 !important; background: none; }}
.vmp-facts td {{ padding: 3px 14px 3px 0 !important; vertical-align: top; }}
.vmp-facts td + td {{ font-variant-numeric: tabular-nums; }}
@media (max-width: 640px) {{
  .vmp-player {{ grid-template-columns: repeat(2, 1fr); }}
  .vmp-strips {{ grid-template-columns: minmax(0, 1fr); }}
  .vmp-strips > div:first-child {{ display: none; }}
  .vmp-name {{ text-align: left; }}
  .vmp-name small {{ display: inline; margin-left: 10px; }}
  .vmp-labels span {{ font-size: 10px; }}
}}
"""

# The curve's picture, in its own units: where D = -1 and 1, where f = 1 and 0, the histogram's rim.
WIDTH, HEIGHT = 520, 330
LEFT, RIGHT = 54, 508
TOP, BOTTOM = 14, 168
RIM, FLOOR = 190, 276


def curve_picture(
    curve: npt.NDArray[Any], histogram: npt.NDArray[Any], facts: dict[str, float]
) -> str:
    """Return f(D) as SVG, with a clip's histogram of D under it on the same axis.

    Args:
        curve: (N, 2), D in [-1, 1] and f(D) in [0, 1].
        histogram: (K,), pixels with a D in each of K equal parts of [-1, 1]; drawn as logarithm.
        facts: "b" and "f0" are marked if they are there.
    """
    lines = [
        f'<line x1="{x(d):.1f}" x2="{x(d):.1f}" y1="{TOP}" y2="{FLOOR}" stroke-opacity="0.2"/>'
        f'<text x="{x(d):.1f}" y="{FLOOR + 18}" text-anchor="middle">{d:g}</text>'
        for d in (-1, -0.5, 0, 0.5, 1)
    ]
    lines += [
        f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y(f)}" y2="{y(f)}" stroke-opacity="0.2"/>'
        f'<text x="{LEFT - 6}" y="{y(f) + 5}" text-anchor="end">{f:g}</text>'
        for f in (0, 0.5, 1)
    ]
    points = " ".join(f"{x(d):.1f},{y(f):.1f}" for d, f in curve)
    marks = f'<polyline points="{points}" fill="none" stroke="{ORANGE}" stroke-width="3"/>'
    if "b" in facts:
        b = x(facts["b"])
        marks += f'<line x1="{b:.1f}" x2="{b:.1f}" y1="{TOP}" y2="{BOTTOM}" stroke="{RED}" '
        marks += f'stroke-dasharray="5 4"/><text x="{b + 5:.1f}" y="{BOTTOM - 6}">b</text>'
    if "f0" in facts:
        marks += f'<circle cx="{x(0)}" cy="{y(facts["f0"]):.1f}" r="5" fill="{RED}" stroke="none"/>'
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-size="14" stroke="currentColor" '
        'aria-label="attention over difference, and how often each difference occurs">'
        "<style>.vmp-curve text{fill:currentColor;stroke:none}</style>"
        f"{''.join(lines)}{_bars(histogram)}{marks}"
        f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">difference D</text>'
        f"{_upright('attention f(D)', (TOP + BOTTOM) / 2)}"
        f"{_upright('pixels, log', (RIM + FLOOR) / 2)}</svg>"
    )


def x(difference: float) -> float:
    """Return where a difference is, from the left."""
    return LEFT + (float(difference) + 1) / 2 * (RIGHT - LEFT)


def y(attention: float) -> float:
    """Return where an attention is, from the top."""
    return BOTTOM - float(attention) * (BOTTOM - TOP)


def _upright(text: str, middle: float) -> str:
    place = f'transform="translate(16 {middle}) rotate(-90)"'
    return f'<text {place} text-anchor="middle">{text}</text>'


def _bars(histogram: npt.NDArray[Any]) -> str:
    """Return the histogram, blue below 0 and orange above as the differences are."""
    logs = np.log1p(histogram)
    tall = logs / max(float(logs.max()), 1e-9) * (FLOOR - RIM)
    edges = np.linspace(LEFT, RIGHT, len(tall) + 1)
    middle = len(tall) // 2
    colours = {NEGATIVE[1]: slice(0, middle), "#888": slice(middle, middle + 1)}
    colours |= {POSITIVE[1]: slice(middle + 1, None)}
    made = ""
    for colour, part in colours.items():
        bars = zip(edges[:-1][part], edges[1:][part], tall[part], strict=True)
        path = "".join(
            f"M{left:.1f} {FLOOR}V{FLOOR - up:.1f}H{right:.1f}V{FLOOR}Z"
            for left, right, up in bars
            if up > 0
        )
        made += f'<path d="{path}" fill="{colour}" stroke="none"/>'
    return made


def facts_table(facts: dict[str, str]) -> str:
    """Return names and what they are as a table."""
    lines = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(told)}</td></tr>" for name, told in facts.items()
    )
    return f"<table>{lines}</table>"
