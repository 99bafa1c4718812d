import {
  diffused, heun, level, levels, logProb, mixtureScore, normalPoints, normals, reverseSDE,
} from "../compass.mjs";
import {colour, frames, number, opacities, stage, tell, worker} from "../stage.mjs";

const PARTICLES = 2000;
const SHOWN = 36;
const STEPS = 160;
const COLUMNS = 100;
const ROWS = 72;
const BINS = 48;
const X = [-3.2, 3.2];

// On a line, so that time can run across the page: the same noise, carried to data by the SDE and by the ODE.
export function pathsFigure(section, page) {
  const {vp, peaks} = page;
  const score = mixtureScore(peaks);
  const down = levels(vp, STEPS);
  const shade = shading(peaks, vp);
  const exact = [...peaks.logWeights].map(Math.exp);
  const runs = {sde: null, ode: null};
  let seed = 20;
  let held = [0.6, 0.4]; // t, x

  const drawPane = (s, name, ink) => {
    s.clear();
    s.heat(shade, COLUMNS, ROWS, ink.first);
    const run = runs[name];
    for (let j = 0; j < SHOWN && run; j++) {
      s.line(run.paths.map((x, i) => [down[i].t, x[j]]), ink.ink, {width: 0.8, opacity: 0.45});
    }
    if (run) histogram(s, run.paths.at(-1), run.paths.length, ink.ink);
    const now = level(vp, Math.max(2 * vp.tMin, held[0]));
    for (const path of name === "ode" ? [through(score, vp, now, held[1])] : futures(score, vp, now, held[1])) {
      s.line(path, ink.second, {width: name === "ode" ? 2.4 : 1.2});
    }
    s.handle(now.t, held[1], ink.second);
    s.text("noise, t = 1", 1, X[0], {dx: 8, dy: -8});
    s.text("data, t = 0", 0, X[0], {dx: -4, dy: -8, align: "right"});
  };

  const draw = () => {
    const ink = colour();
    drawPane(sde, "sde", ink);
    drawPane(ode, "ode", ink);
    const values = {place: `t = ${number(held[0])}, x = ${number(held[1])}`, exact: shares(exact)};
    for (const name of ["sde", "ode"]) {
      const whole = runs[name]?.paths.length === STEPS + 1;
      values[`${name}-shares`] = whole ? shares(modeShares(peaks, runs[name].paths.at(-1))) : "…";
      values[`${name}-crossings`] = whole ? crossings(runs[name].paths).toLocaleString("en") : "…";
    }
    tell(section, values);
  };

  const redraw = frames(draw);
  const move = (t, x) => {
    held = [Math.min(0.98, Math.max(0.02, t)), x];
    redraw();
  };
  const panes = [...section.querySelectorAll("canvas")].map((canvas) =>
    stage(canvas, {x: [1, -0.16], y: X, redraw, move, at: () => held, step: 0.1}));
  const [sde, ode] = panes;

  const work = worker(redraw);
  const run = () => {
    const start = normalPoints(PARTICLES, 1, seed);
    const solvers = {};
    for (const name of ["sde", "ode"]) {
      const x = Float64Array.from(start);
      runs[name] = {paths: [Float32Array.from(x)]};
      const steps = name === "sde" ? reverseSDE(score, x, down, normals(seed + 500)) : heun(score, x, down);
      solvers[name] = {x, steps};
    }
    const both = function* () {
      for (let i = 0; i < STEPS; i++) {
        for (const name of ["sde", "ode"]) {
          solvers[name].steps.next();
          runs[name].paths.push(Float32Array.from(solvers[name].x));
        }
        yield;
      }
    };
    work(both());
  };
  section.querySelector("button").addEventListener("click", () => {
    seed += 1;
    run();
  });
  run();
}

// p_t(x) over time and place, each column by its own largest value.
function shading(peaks, vp) {
  const values = new Float64Array(COLUMNS * ROWS);
  const rows = Float64Array.from({length: ROWS}, (_, row) => X[0] + ((row + 0.5) / ROWS) * (X[1] - X[0]));
  for (let column = 0; column < COLUMNS; column++) {
    const t = 1 - 1.16 * ((column + 0.5) / COLUMNS);
    if (t < 0) continue; // the margin of the histogram
    const density = opacities(logProb(diffused(peaks, level(vp, Math.max(vp.tMin, t))), rows));
    density.forEach((value, row) => (values[row * COLUMNS + column] = 0.8 * value));
  }
  return values;
}

// The one path of the ODE through a point, to both sides.
function through(score, vp, now, place) {
  const follow = (end, key) => {
    const x = Float64Array.of(place);
    const along = levels({...vp, [key]: now.t}, 60);
    const path = [[now.t, place]];
    if (end === "noise") along.reverse();
    for (const step of heun(score, x, along)) path.push([along[step].t, x[0]]);
    return path;
  };
  return [...follow("noise", "tMin").reverse(), ...follow("data", "tMax")];
}

// A few futures of the SDE from the same point.
function futures(score, vp, now, place) {
  const x = new Float64Array(8).fill(place);
  const paths = Array.from(x, () => [[now.t, place]]);
  const along = levels({...vp, tMax: now.t}, 100);
  for (const step of reverseSDE(score, x, along, normals(77))) {
    paths.forEach((path, j) => path.push([along[step].t, x[j]]));
  }
  return paths;
}

function histogram(s, x, steps, colour) {
  const counts = new Array(BINS).fill(0);
  for (const value of x) {
    const bin = Math.floor(((value - X[0]) / (X[1] - X[0])) * BINS);
    if (bin >= 0 && bin < BINS) counts[bin] += 1;
  }
  const most = Math.max(...counts);
  const {context} = s;
  context.fillStyle = colour;
  context.globalAlpha = steps === STEPS + 1 ? 0.75 : 0.25;
  counts.forEach((count, bin) => {
    const [low, high] = [X[0] + (bin / BINS) * (X[1] - X[0]), X[0] + ((bin + 1) / BINS) * (X[1] - X[0])];
    const width = (0.15 * count) / most;
    context.fillRect(s.px(-0.005), s.py(high), s.px(-0.005 - width) - s.px(-0.005), s.py(low) - s.py(high) - 0.5);
  });
  context.globalAlpha = 1;
}

// The share of points in each peak, by the nearest of their centres.
export function modeShares(peaks, x) {
  const found = new Array(peaks.k).fill(0);
  for (const value of x) {
    const apart = peaks.means.map((mean) => Math.abs(value - mean));
    found[apart.indexOf(Math.min(...apart))] += 1 / x.length;
  }
  return found;
}

// How often two of the shown paths cross: between two times, where their order changes.
function crossings(paths) {
  let found = 0;
  for (let i = 1; i < paths.length; i++) {
    for (let j = 0; j < SHOWN; j++) {
      for (let other = 0; other < j; other++) {
        if ((paths[i][j] - paths[i][other]) * (paths[i - 1][j] - paths[i - 1][other]) < 0) found += 1;
      }
    }
  }
  return found;
}

function shares(values) {
  return values.map((value) => number(value)).join(" · ");
}
