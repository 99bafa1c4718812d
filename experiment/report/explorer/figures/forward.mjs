import {level, logSNR, normalPoints, samples} from "../compass.mjs";
import {colour, frames, number, pair, player, slider, stage, tell} from "../stage.mjs";

const SHOWN = 2000;

// Noise is added in one jump, x_t = alpha x_0 + sigma eps; one point is held, and its own cloud shown.
export function forwardFigure(section, page) {
  const clean = samples(page.eight, SHOWN, 1);
  const noise = normalPoints(SHOWN, 2, 2);
  const noised = new Float64Array(2 * SHOWN);
  let held = [1.2, 0.9];

  const draw = () => {
    const now = level(page.vp, Math.max(page.vp.tMin, time.value));
    let square = 0;
    for (let i = 0; i < noised.length; i++) {
      noised[i] = now.alpha * clean[i] + now.sigma * noise[i];
      square += noised[i] * noised[i];
    }
    const ink = colour();
    s.clear();
    s.line(page.outline, ink.soft, {dash: [5, 5], width: 1.4});
    s.dots(noised, ink.first);
    const mean = held.map((value) => now.alpha * value);
    s.line([held, mean], ink.second, {width: 1.5, opacity: 0.7});
    s.circle(...mean, (now.sigma / (s.x[1] - s.x[0])) * s.width, ink.second, {dash: [3, 3]});
    s.circle(...mean, 3, ink.second, {fill: true});
    s.handle(...held, ink.second);
    tell(section, {
      alpha: number(now.alpha, 3),
      sigma: number(now.sigma, 3),
      snr: number(logSNR(now)),
      spread: number(Math.sqrt(square / noised.length), 3),
      exact: number(Math.sqrt(now.alpha ** 2 * page.eightVariance + now.sigma ** 2), 3),
      cloud: `${pair(...mean)} ± ${number(now.sigma)}`,
    });
  };

  const redraw = frames(draw);
  const time = slider(section, "time", redraw, (value) => value.toFixed(3));
  const s = stage(section.querySelector("canvas"), {
    ...page.plane,
    redraw,
    at: () => held,
    move: (x, y) => {
      held = [x, y];
      redraw();
    },
  });
  player(section.querySelector("button"), time, 5);
}
