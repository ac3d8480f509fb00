"""The page of `tools/explorer.py`: Gradio's controls, and a server for them.

Nothing is kept of who looks: each answer is a function of the numbers that the page sends.
"""

import argparse
import os
import socket
import webbrowser
from collections.abc import Callable
from typing import Any

import explorer_layout as lay
from explorer import LOOPBACK, MOST_FRAMES
from explorer_answers import FOLLOWS, OWN, Answers, Start
from explorer_view import Numbers, Window

from vmp.prompts import POWER_NORMS

# Read by Gradio when it is imported: no word of the use of it leaves this machine, or is kept.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request, Response

# What a browser may fetch for the page: what comes from here, and what the page has in itself.
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'"
# An answer of milliseconds needs no queue; of many moves of a slider the last one counts.
AT_ONCE = {"queue": False, "trigger_mode": "always_last", "show_progress": "hidden"}


def build_page(start: Start) -> gr.Blocks:
    """Return the page."""
    answers = Answers(start)
    with gr.Blocks(title=f"Motion prompts: {start.video.name}", analytics_enabled=False) as page:
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                controls = _controls(start, answers)
            with gr.Column(scale=3, min_width=320):
                view = gr.HTML(
                    answers.look(start.numbers, start.window, moved=True),
                    html_template=lay.layout(),
                    js_on_load=lay.SCRIPT,
                    elem_id="view",
                )
        _connect(controls, view, answers)
    return page


def _controls(start: Start, answers: Answers) -> dict[str, Any]:
    """Return the controls by name, in the order they stand in."""
    window, total = start.window, start.video.total

    def slider(name: str, label: str, low: float, high: float, value: float) -> Any:
        return gr.Slider(low, high, value, label=label, elem_id=name, step=1, buttons=[])

    norms = [name for name, _ in POWER_NORMS]
    made: dict[str, Any] = {
        "preset": gr.Dropdown(
            [OWN, *start.presets], value=start.preset, label="numbers learned on", elem_id="preset"
        ),
        "norm": gr.Dropdown(
            norms, value=start.numbers.norm, label="power normalisation", elem_id="norm"
        ),
    }
    for name, like in answers.sliders(start.numbers).items():
        made[name] = gr.Slider(elem_id=name, buttons=[], **like)
    made |= {
        "start": slider("start", "first frame", 0, total - 2, min(window.start, total - 2)),
        "stride": slider("stride", "frame stride", 1, max(16, window.stride), window.stride),
        "pathway": slider("pathway", "pathway stride", 1, 8, window.pathway),
        "steps": slider("steps", "prompts", 2, MOST_FRAMES, window.steps),
    }
    with gr.Row():
        made["panel"] = gr.Button("save panel (PNG)", size="sm", elem_id="panel", min_width=120)
        made["recipe"] = gr.Button("save YAML", size="sm", elem_id="recipe", min_width=120)
    made["learn"] = gr.Checkbox(True, label="LEARNABLE in the YAML", elem_id="learn")
    return made


def _connect(controls: dict[str, Any], view: Any, answers: Answers) -> None:
    """Have the controls move each other and the view."""
    sent = [controls[name] for name in (*Numbers._fields, *Window._fields)]
    split = len(Numbers._fields)

    def both(values: tuple[Any, ...]) -> tuple[Numbers, Window]:
        return Numbers(*values[:split]), Window(*map(int, values[split:]))

    def answer(name: str) -> Callable[..., dict[Any, Any]]:
        """Return what answers a control that was moved; it sends where to, then all numbers."""

        def moved(to: Any, *values: Any) -> dict[Any, Any]:
            news = answers.change(name, to, *both(values))
            shown = {view: news.pop("view")}
            return shown | {controls[each]: gr.update(**like) for each, like in news.items()}

        return moved

    for name in FOLLOWS:
        outputs = [controls[each] for each in FOLLOWS[name]]
        controls[name].input(answer(name), [controls[name], *sent], [*outputs, view], **AT_ONCE)
    controls["panel"].click(
        lambda *values: answers.save_panel(*both(values)), sent, view, **AT_ONCE
    )
    controls["recipe"].click(
        lambda learn, *values: answers.save_recipe(*both(values), learn=learn),
        [controls["learn"], *sent],
        view,
        **AT_ONCE,
    )


# ---------------------------------------------------------------- the server


def build_app(page: gr.Blocks) -> FastAPI:
    """Return the page as a program for a web server, which lets browsers fetch nothing else."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Any]) -> Response:
        answer: Response = await call_next(request)
        answer.headers["Content-Security-Policy"] = POLICY
        return answer

    # fonts that are there, instead of Google's
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    made: FastAPI = gr.mount_gradio_app(
        app, page, path="/", footer_links=[], max_file_size=1, theme=theme, css=lay.STYLE
    )
    return made


def serve(args: argparse.Namespace, start: Start, taken: socket.socket) -> None:
    """Serve the page until the process is interrupted.

    Args:
        args: of the command line.
        start: what the page starts with.
        taken: what to listen at.
    """
    app = build_app(build_page(start))
    host = f"[{args.host}]" if ":" in args.host else args.host
    where = f"http://{host}:{taken.getsockname()[1]}"
    if args.host not in LOOPBACK:
        print(f"warning: who reaches {args.host} sees the video; there is no password")
    print(f"{args.video} is shown at {where} (Ctrl+C ends it)", flush=True)
    if not args.no_browser:
        webbrowser.open(where)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[taken])
