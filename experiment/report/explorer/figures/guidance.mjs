import {
  guidanceLaw, guided, heun, levels, mixture, mixtureScore, normalPoints, normals, reverseSDE,
} from "../compass.mjs";
import {colour, frames, number, slider, stage, tell, worker} from "../stage.mjs";

const PARTICLES = 2000;
const BINS = 56;
const X = [-2.2, 3.2];

// What a guidance scale really draws: two Gaussians, for which the answer is exact.
export function guidanceFigure(section, page) {
  const {conditional, unconditional} = page.guidance;
  const [one, none] = [conditional, unconditional].map(([m, v]) => mixtureScore(mixture([1], [[m]], [[[v]]])));
  const found = {ode: null, sde: null};

  const drawPane = (s, name, law, ink) => {
    s.clear();
    const {mean, variance} = law[name];
    const density = (x, m, v) => Math.exp((-0.5 * (x - m) ** 2) / v) / Math.sqrt(2 * Math.PI * v);
    const top = 1.25 * Math.max(density(0, 0, variance), density(0, 0, law.tilted.variance));
    s.y = [-0.08 * top, top];
    if (found[name]) bars(s, found[name], ink.first);
    const curve = (m, v) => Array.from({length: 401}, (_, i) => {
      const x = X[0] + (i / 400) * (X[1] - X[0]);
      return [x, density(x, m, v)];
    });
    s.line([[X[0], 0], [X[1], 0]], ink.line);
    for (const x of [-2, -1, 0, 1, 2, 3]) s.text(number(x, 0), x, 0, {dy: 16, align: "center"});
    s.line(curve(law.tilted.mean, law.tilted.variance), ink.third, {dash: [5, 4], width: 2});
    s.line(curve(mean, variance), ink.second, {width: 2.2});
  };

  const draw = () => {
    const law = guidanceLaw(conditional, unconditional, scale.value);
    const ink = colour();
    drawPane(sde, "sde", law, ink);
    drawPane(ode, "ode", law, ink);
    const values = {"tilted-variance": number(law.tilted.variance, 4), "tilted-mean": number(law.tilted.mean, 3)};
    for (const name of ["sde", "ode"]) {
      values[`${name}-variance`] = number(law[name].variance, 4);
      values[`${name}-mean`] = number(law[name].mean, 3);
      values[`${name}-drawn`] = found[name] ? number(varianceOf(found[name]), 4) : "…";
    }
    tell(section, values);
  };

  const redraw = frames(draw);
  const work = worker((done) => done && redraw());
  const run = (g) => {
    const score = guided(one, none, g);
    const x = {sde: normalPoints(PARTICLES, 1, 41), ode: normalPoints(PARTICLES, 1, 42)};
    const both = function* () {
      yield* reverseSDE(score, x.sde, page.longLevels, normals(43));
      yield* heun(score, x.ode, page.longLevels);
      Object.assign(found, x);
    };
    found.ode = found.sde = null;
    work(both());
    redraw();
  };
  const scale = slider(section, "scale", run);
  const [sde, ode] = [...section.querySelectorAll("canvas")].map((canvas) => stage(canvas, {x: X, y: [0, 1], redraw}));
  page.longLevels ??= levels(page.vp, 200);
  run(scale.value);
}

function bars(s, x, colour) {
  const width = (X[1] - X[0]) / BINS;
  const counts = new Array(BINS).fill(0);
  for (const value of x) {
    const bin = Math.floor((value - X[0]) / width);
    if (bin >= 0 && bin < BINS) counts[bin] += 1;
  }
  s.context.fillStyle = colour;
  s.context.globalAlpha = 0.55;
  counts.forEach((count, bin) => {
    const [left, right] = [s.px(X[0] + bin * width), s.px(X[0] + (bin + 1) * width)];
    const top = s.py(count / (x.length * width));
    s.context.fillRect(left, top, right - left - 0.5, s.py(0) - top);
  });
  s.context.globalAlpha = 1;
}

function varianceOf(x) {
  const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
  return x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length;
}
