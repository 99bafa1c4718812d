import {
  diffused, heun, logProb, mixture, mixtureScore, normalPoints, normals, reverseSDE, scoreOf,
} from "../compass.mjs";
import {decoded, networkScore, runLevels} from "../network.mjs";
import {choice, colour, frames, gridOver, number, opacities, pair, slider, stage, tell, worker} from "../stage.mjs";
import {drawArrows} from "./field.mjs";

const ARROWS = 15;
const PARTICLES = 120;
const TRAILS = 24;

// A run's learned field, paths and densities beside the exact ones, or beside examples where those are not known. The
// plane is drawn in units of sqrt(alpha² + sigma²), so that any process fits.
export function runFigure(section, page, run) {
  const all = runLevels(run.levels);
  const known = run.exact && mixture(run.exact.weights, run.exact.means, run.exact.covariances);
  const [depth, parts] = run.parts;
  const window = {x: [-run.limit, run.limit], y: [-run.limit, run.limit]};
  const places = gridOver(window, ARROWS);
  const cells = gridOver(window, run.cells);
  const told = run.choices.map((one) => ({
    score: networkScore(run.network, one),
    below: decoded(one.density, Uint16Array),
    largest: one.largest,
    examples: Float64Array.from(one.examples.flat()),
    exact: known && (one.name === "" || one.name === "anything") ? mixtureScore(known) : null,
  }));
  const shown = {exact: null, learned: null};
  const noise = normalPoints(400, 2, 71);
  let seed = 70;
  let held = [0.8, -0.6];

  const now = () => all[run.stops[stop.value]];
  const spread = ({alpha, sigma}) => Math.hypot(alpha, sigma);
  const logDensity = (one) => {
    const size = run.cells ** 2;
    const start = stop.value * size;
    return Float64Array.from({length: size}, (_, i) =>
      one.largest[stop.value] - (depth * one.below[start + i]) / parts);
  };

  // Fields and shades stay while only the point moves.
  const cache = new Map();
  const background = (one, name) => {
    const key = `${name} ${stop.value} ${select.value}`;
    if (!cache.has(key)) {
      const level = now();
      const scale = spread(level);
      const learned = name === "learned";
      const score = learned ? one.score : one.exact;
      const scaled = (points) => points.map((value) => scale * value);
      const logs = learned ? logDensity(one) : logProb(diffused(known, level), scaled(cells));
      const arrows = score.at(level)(scaled(places), new Float64Array(places.length));
      cache.set(key, {logs, shade: opacities(logs).map((value) => 0.8 * value), arrows});
    }
    return cache.get(key);
  };

  const cellOf = ([u, v]) => {
    const at = (value) => Math.min(run.cells - 1, Math.floor(((value + run.limit) / (2 * run.limit)) * run.cells));
    return at(v) * run.cells + at(u);
  };

  const drawPane = (s, name, one, ink) => {
    const level = now();
    const scale = 1 / spread(level);
    s.clear();
    const score = name === "learned" ? one.score : one.exact;
    if (!score) {
      const points = one.examples.map((x, i) => level.alpha * x + level.sigma * noise[i % noise.length]);
      s.dots(points, ink.first, {scale});
      s.handle(...held, ink.second);
      return;
    }
    const {shade, arrows} = background(one, name);
    s.heat(shade, run.cells, run.cells, ink.first);
    drawArrows(s, places, arrows, ARROWS, ink.soft);
    const steps = shown[name];
    const last = Math.min(run.stops[stop.value], (steps?.length ?? 0) - 1);
    for (let j = 0; j < TRAILS && steps; j++) {
      const trail = steps.slice(0, last + 1).map((x, i) => [x[2 * j] / spread(all[i]), x[2 * j + 1] / spread(all[i])]);
      s.line(trail, ink.ink, {width: 0.8, opacity: 0.5});
    }
    if (steps) s.dots(steps[last], ink.ink, {size: 1.6, scale: 1 / spread(all[last]), opacity: 0.9});
    const x = Float64Array.from(held, (value) => value / scale);
    const path = [[...held]];
    const ahead = all.slice(run.stops[stop.value]);
    for (const step of heun(score, x, ahead)) path.push([...x].map((value) => value / spread(ahead[step])));
    s.line(path, ink.second, {width: 2});
    s.circle(...path.at(-1), 4, ink.second, {fill: true});
    s.handle(...held, ink.second);
  };

  const draw = () => {
    const one = told[select.value];
    const ink = colour();
    const name = one.exact ? "Exact" : "Examples of the data, noised";
    section.querySelector("figcaption").textContent = name;
    left.canvas.setAttribute("aria-label", `${name}, with a point that is dragged or moved by the arrow keys`);
    drawPane(left, "exact", one, ink);
    drawPane(right, "learned", one, ink);
    const level = now();
    const x = Float64Array.from(held, (value) => value * spread(level));
    const cell = cellOf(held);
    const learned = one.score.at(level)(x, new Float64Array(2));
    const values = {
      time: number(level.t, 4), place: pair(...x), learned: pair(...learned),
      "learned-log": number(logDensity(one)[cell]), exact: "not known", "exact-log": "not known", apart: "not known",
    };
    if (one.exact) {
      const exact = scoreOf(diffused(known, level))(x, new Float64Array(2));
      values.exact = pair(...exact);
      values["exact-log"] = number(background(one, "exact").logs[cell]);
      values.apart = number(Math.hypot(learned[0] - exact[0], learned[1] - exact[1]) / Math.hypot(...exact), 3);
    }
    tell(section, values);
  };

  const redraw = frames(draw);
  const stop = slider(section, "stop", redraw, (value) => all[run.stops[value]].t.toPrecision(2));
  const select = section.querySelector("select");
  run.choices.forEach(({name}, i) => select.add(new Option(name || "nothing", i)));
  select.closest(".control").hidden = run.choices.length === 1;
  const [left, right] = [...section.querySelectorAll("canvas")].map((canvas) =>
    stage(canvas, {
      ...window, redraw, at: () => held,
      move: (u, v) => {
        held = [u, v];
        redraw();
      },
    }));

  const work = worker(redraw);
  const drawPaths = () => {
    const one = told[select.value];
    const start = normalPoints(PARTICLES, 2, seed).map((value) => all[0].sigma * value);
    const solving = function* () {
      for (const name of one.exact ? ["exact", "learned"] : ["learned"]) {
        const score = name === "learned" ? one.score : one.exact;
        const x = Float64Array.from(start);
        shown[name] = [Float32Array.from(x)];
        const solver = method.value === "sde" ? reverseSDE(score, x, all, normals(seed + 900)) : heun(score, x, all);
        for (const _ of solver) {
          shown[name].push(Float32Array.from(x));
          yield;
        }
      }
    };
    shown.exact = shown.learned = null;
    work(solving());
    redraw();
  };
  select.addEventListener("change", drawPaths);
  const method = choice(section, "method", drawPaths);
  section.querySelector("button").addEventListener("click", () => {
    seed += 1;
    drawPaths();
  });
  drawPaths();
}
