// What the figures are drawn and moved with: a canvas with axes of its own, sliders, buttons, and one frame at a time.

const reduced = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");

// The page's colours as the reader has it, light or dark; canvases read them from the style sheet.
function colours() {
  const style = getComputedStyle(document.documentElement);
  const named = {};
  for (const name of ["ground", "ink", "soft", "line", "first", "second", "third"]) {
    named[name] = style.getPropertyValue("--" + name).trim();
  }
  return named;
}

let palette = colours();

export function colour() {
  return palette;
}

const drawers = [];
dark.addEventListener("change", () => {
  palette = colours();
  drawers.forEach((redraw) => redraw());
});

// A function that asks for a drawing: at most one a frame, however often it is called.
export function frames(draw) {
  let queued = false;
  const redraw = () => {
    if (queued) return;
    queued = true;
    requestAnimationFrame(() => {
      queued = false;
      draw();
    });
  };
  drawers.push(redraw);
  return redraw;
}

// A canvas over the rectangle x[0]..x[1], y[0]..y[1]. `move(x, y)`, if given, is called where a pointer is put or
// dragged, and with the place of `at()` moved by `step` where an arrow key is pressed.
export function stage(canvas, {x, y, redraw, move, at, step = 0.1}) {
  const context = canvas.getContext("2d");
  const s = {canvas, context, x, y, width: 0, height: 0};

  const fit = () => {
    const ratio = Math.min(devicePixelRatio || 1, 2);
    s.width = canvas.clientWidth;
    s.height = canvas.clientHeight;
    canvas.width = Math.round(s.width * ratio);
    canvas.height = Math.round(s.height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    redraw();
  };
  new ResizeObserver(fit).observe(canvas);

  s.px = (value) => ((value - s.x[0]) / (s.x[1] - s.x[0])) * s.width;
  s.py = (value) => s.height - ((value - s.y[0]) / (s.y[1] - s.y[0])) * s.height;

  if (move) {
    const kept = (value, ends) => Math.min(Math.max(...ends), Math.max(Math.min(...ends), value));
    const put = (event) => {
      const box = canvas.getBoundingClientRect();
      const u = (event.clientX - box.left) / box.width;
      const v = (event.clientY - box.top) / box.height;
      move(kept(s.x[0] + u * (s.x[1] - s.x[0]), s.x), kept(s.y[1] - v * (s.y[1] - s.y[0]), s.y));
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      put(event);
    });
    canvas.addEventListener("pointermove", (event) => event.buttons && put(event));
    const arrows = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]};
    canvas.addEventListener("keydown", (event) => {
      if (!(event.key in arrows) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const [across, up] = arrows[event.key];
      const size = event.shiftKey ? 5 * step : step;
      const [u, v] = at();
      move(kept(u + across * size * Math.sign(s.x[1] - s.x[0]), s.x), kept(v + up * size, s.y));
    });
  }

  // -- What is drawn

  s.clear = () => context.clearRect(0, 0, s.width, s.height);

  s.dots = (points, colour, {n = points.length / 2, size = 1.4, opacity = 0.6, scale = 1} = {}) => {
    context.globalAlpha = opacity;
    context.fillStyle = colour;
    for (let i = 0; i < n; i++) {
      context.fillRect(s.px(scale * points[2 * i]) - size, s.py(scale * points[2 * i + 1]) - size, 2 * size, 2 * size);
    }
    context.globalAlpha = 1;
  };

  s.line = (points, colour, {width = 1.5, opacity = 1, dash = []} = {}) => {
    context.globalAlpha = opacity;
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.lineJoin = "round";
    context.setLineDash(dash);
    context.beginPath();
    points.forEach(([u, v], i) => (i ? context.lineTo(s.px(u), s.py(v)) : context.moveTo(s.px(u), s.py(v))));
    context.stroke();
    context.setLineDash([]);
    context.globalAlpha = 1;
  };

  s.circle = (u, v, radius, colour, {fill = false, width = 1.5, opacity = 1, dash = []} = {}) => {
    context.globalAlpha = opacity;
    context.beginPath();
    context.arc(s.px(u), s.py(v), radius, 0, 2 * Math.PI);
    context.setLineDash(dash);
    if (fill) {
      context.fillStyle = colour;
      context.fill();
    } else {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.stroke();
    }
    context.setLineDash([]);
    context.globalAlpha = 1;
  };

  // The point that the reader holds.
  s.handle = (u, v, colour) => {
    s.circle(u, v, 7, palette.ground, {fill: true});
    s.circle(u, v, 7, colour, {width: 2});
    s.circle(u, v, 3, colour, {fill: true});
  };

  s.arrow = (u, v, du, dv, colour, {width = 1.2, opacity = 1, head = 4} = {}) => {
    const [x0, y0, x1, y1] = [s.px(u), s.py(v), s.px(u + du), s.py(v + dv)];
    const length = Math.hypot(x1 - x0, y1 - y0);
    if (length < 1) return;
    const [ex, ey] = [(x1 - x0) / length, (y1 - y0) / length];
    const tip = Math.min(head, 0.5 * length);
    context.globalAlpha = opacity;
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
    context.moveTo(x1 - tip * (ex + 0.6 * ey), y1 - tip * (ey - 0.6 * ex));
    context.lineTo(x1, y1);
    context.lineTo(x1 - tip * (ex - 0.6 * ey), y1 - tip * (ey + 0.6 * ex));
    context.stroke();
    context.globalAlpha = 1;
  };

  // Values (ny, nx) from the lower left up, each an opacity of the colour from 0 to 1, as a smooth picture.
  const small = document.createElement("canvas");
  s.heat = (values, nx, ny, colour) => {
    if (!s.width) return;
    small.width = nx;
    small.height = ny;
    const pen = small.getContext("2d");
    const image = pen.createImageData(nx, ny);
    const [red, green, blue] = rgb(colour);
    for (let row = 0; row < ny; row++) {
      for (let column = 0; column < nx; column++) {
        const i = 4 * ((ny - 1 - row) * nx + column);
        image.data[i] = red;
        image.data[i + 1] = green;
        image.data[i + 2] = blue;
        image.data[i + 3] = 255 * values[row * nx + column];
      }
    }
    pen.putImageData(image, 0, 0);
    context.imageSmoothingQuality = "high";
    context.drawImage(small, 0, 0, s.width, s.height);
  };

  s.text = (words, u, v, {colour = palette.soft, align = "left", dx = 0, dy = 0, size = 12.5} = {}) => {
    context.font = `${size}px system-ui, sans-serif`;
    context.fillStyle = colour;
    context.textAlign = align;
    context.fillText(words, s.px(u) + dx, s.py(v) + dy);
  };

  return s;
}

function rgb(colour) {
  return [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
}

// A grid of n x n points over a stage, row by row from the lower left, as (n², 2).
export function gridOver({x, y}, n) {
  const points = new Float64Array(2 * n * n);
  for (let row = 0; row < n; row++) {
    for (let column = 0; column < n; column++) {
      const i = 2 * (row * n + column);
      points[i] = x[0] + ((column + 0.5) / n) * (x[1] - x[0]);
      points[i + 1] = y[0] + ((row + 0.5) / n) * (y[1] - y[0]);
    }
  }
  return points;
}

// Opacities of log-densities: the root of the density, so that thin parts are seen, 0.85 at its largest.
export function opacities(logDensities) {
  const largest = logDensities.reduce((a, b) => Math.max(a, b), -Infinity);
  return logDensities.map((value) => 0.85 * Math.exp(0.5 * (value - largest)));
}

// The slider `name` of a section: its value, and what is called when it moves. Its read-out is written by `show`.
export function slider(section, name, changed, show = (value) => value.toFixed(2)) {
  const input = section.querySelector(`input[name="${name}"]`);
  const output = section.querySelector(`output[for="${input.id}"]`);
  const s = {
    input,
    get value() {
      return input.valueAsNumber;
    },
    set value(value) {
      input.value = value;
      s.show();
      changed(input.valueAsNumber);
    },
    show() {
      output.textContent = show(input.valueAsNumber);
      input.setAttribute("aria-valuetext", output.textContent);
    },
  };
  input.addEventListener("input", () => {
    s.show();
    changed(input.valueAsNumber);
  });
  s.show();
  return s;
}

// The choice `name` of a section, a group of radio buttons; their names are unique on the page.
export function choice(section, name, changed) {
  const inputs = [...section.querySelectorAll(`input[name="${section.id}-${name}"]`)];
  inputs.forEach((input) => input.addEventListener("change", () => changed(input.value)));
  return {
    get value() {
      return inputs.find((input) => input.checked).value;
    },
  };
}

// A button that moves a slider from its low to its high end in so many seconds, and back to rest when pressed again.
// A reader who wants less motion gets the end at once.
export function player(button, moved, seconds, {down = false} = {}) {
  const {input} = moved;
  const [low, high] = [Number(input.min), Number(input.max)];
  const [start, end] = down ? [high, low] : [low, high];
  const name = button.textContent;
  let running = false;
  const stop = () => {
    running = false;
    button.textContent = name;
  };
  button.addEventListener("click", () => {
    if (running) return stop();
    running = true;
    button.textContent = "Stop";
    const begun = performance.now();
    const from = Math.abs(moved.value - end) < 1e-9 ? start : moved.value;
    const length = (1000 * seconds * Math.abs(end - from)) / (high - low);
    const tick = (now) => {
      if (!running) return;
      const share = reduced.matches ? 1 : Math.min(1, Math.max(0, (now - begun) / length));
      moved.value = from + share * (end - from);
      if (share < 1) requestAnimationFrame(tick);
      else stop();
    };
    requestAnimationFrame(tick);
  });
  input.addEventListener("pointerdown", stop);
  input.addEventListener("keydown", stop);
}

// Runs a generator in slices of 8 ms between frames, `after` each slice; a new task ends the one before. Without
// motion only the end is shown.
export function worker(after) {
  let current = 0;
  return (generator) => {
    const mine = ++current;
    const slice = () => {
      if (mine !== current) return;
      const until = performance.now() + 8;
      let done = false;
      while (!done && performance.now() < until) done = generator.next().done;
      if (done || !reduced.matches) after(done);
      if (!done) setTimeout(slice, 0);
    };
    slice();
  };
}

// Writes values into the read-outs of a section, by their names.
export function tell(section, values) {
  for (const [name, value] of Object.entries(values)) {
    section.querySelector(`[data-read="${name}"]`).textContent = value;
  }
}

// A number with so many decimals and a true minus sign.
export function number(value, decimals = 2) {
  const text = value.toFixed(decimals);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
}

export function pair(u, v, decimals = 2) {
  return `(${number(u, decimals)}, ${number(v, decimals)})`;
}
