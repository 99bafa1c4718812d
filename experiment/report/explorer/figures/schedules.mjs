import {level, logSNR, normalPoints, samples} from "../compass.mjs";
import {colour, frames, number, slider, stage, tell} from "../stage.mjs";

const SHOWN = 1000;
const NAMES = ["vp", "cosine"];

// Two schedules side by side at one t: the curves of what is left of the signal, and what is left of the figure.
export function schedulesFigure(section, page) {
  const clean = samples(page.eight, SHOWN, 31);
  const noise = normalPoints(SHOWN, 2, 32);
  const at = (process, t) => level(process, Math.min(process.tMax, Math.max(process.tMin, t)));

  const draw = () => {
    const ink = colour();
    const inks = {vp: ink.first, cosine: ink.second};
    curves.clear();
    for (const value of [0, 0.25, 0.5, 0.75, 1]) {
      curves.line([[0, value], [1, value]], ink.line, {width: 1});
      curves.text(number(value), 0, value, {dx: -8, dy: 4, align: "right"});
      curves.text(number(value), value, 0, {dy: 18, align: "center"});
    }
    curves.text("signal left, α²", 0, 1, {dx: 6, dy: -10});
    curves.text("t", 1, 0, {dx: 14, dy: 4});
    const t = time.value;
    curves.line([[t, 0], [t, 1]], ink.ink, {width: 1.2, dash: [3, 3]});
    const values = {};
    NAMES.forEach((name, i) => {
      const process = page[name];
      const points = Array.from({length: 121}, (_, j) => [j / 120, at(process, j / 120).alpha ** 2]);
      curves.line(points, inks[name], {width: 2.2});
      const now = at(process, t);
      curves.circle(t, now.alpha ** 2, 5, inks[name], {fill: true});
      values[`${name}-left`] = number(now.alpha ** 2, 3);
      values[`${name}-snr`] = number(logSNR(now));
      const cloud = clouds[i];
      cloud.clear();
      cloud.line(page.outline, ink.soft, {dash: [5, 5], width: 1.2});
      cloud.dots(clean.map((x, j) => now.alpha * x + now.sigma * noise[j]), inks[name], {size: 1.1});
    });
    curves.handle(t, 0, ink.ink);
    tell(section, values);
  };

  const redraw = frames(draw);
  const time = slider(section, "time", redraw, (value) => value.toFixed(3));
  const [first, ...rest] = section.querySelectorAll("canvas");
  const move = (t) => (time.value = Math.min(1, Math.max(0, t)));
  const curves = stage(first, {
    x: [-0.17, 1.08], y: [-0.13, 1.12], redraw, move, at: () => [time.value, 0], step: 0.01,
  });
  const clouds = rest.map((canvas) => stage(canvas, {...page.plane, redraw}));
}
