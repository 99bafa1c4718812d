import {cosineVP, mixture, momentsOf, rectifiedFlow, vp} from "./compass.mjs";
import {fieldFigure} from "./figures/field.mjs";
import {forwardFigure} from "./figures/forward.mjs";
import {guidanceFigure} from "./figures/guidance.mjs";
import {noiseCompassFigure} from "./figures/noise_compass.mjs";
import {pathsFigure} from "./figures/paths.mjs";
import {posteriorFigure} from "./figures/posterior.mjs";
import {reverseFigure} from "./figures/reverse.mjs";
import {runFigure} from "./figures/run.mjs";
import {schedulesFigure} from "./figures/schedules.mjs";

const read = (id) => JSON.parse(document.getElementById(id).textContent);

// What all figures share: the numbers that Python wrote, as objects.
function shared({eight, outline, peaks, processes, guidance}) {
  const figure = mixture(eight.weights, eight.means, eight.covariances);
  return {
    eight: figure,
    eightVariance: momentsOf(figure).variance / 2,
    outline: [...outline, outline[0]],
    peaks: mixture(peaks.weights, peaks.means, peaks.covariances),
    vp: vp(processes.vp),
    cosine: cosineVP(processes.cosine),
    flow: rectifiedFlow(processes.flow),
    guidance,
    plane: {x: [-3, 3], y: [-3, 3]},
    // Of points (n, 2), the median of the distances from the figure's outline.
    medianDistance(x) {
      const squares = new Float64Array(x.length / 2).fill(Infinity);
      for (const [u, v] of outline) {
        for (let i = 0; i < squares.length; i++) {
          squares[i] = Math.min(squares[i], (x[2 * i] - u) ** 2 + (x[2 * i + 1] - v) ** 2);
        }
      }
      return Math.sqrt(squares.sort()[squares.length >> 1]);
    },
  };
}

const page = shared(read("numbers"));
const figures = {
  forward: forwardFigure,
  reverse: reverseFigure,
  compass: noiseCompassFigure,
  field: fieldFigure,
  paths: pathsFigure,
  schedules: schedulesFigure,
  guidance: guidanceFigure,
  posterior: posteriorFigure,
};

// One after the other, so that the page is there at once; a page of a run begins with it.
const run = document.getElementById("run-data") && read("run-data");
const waiting = Object.entries(figures).map(([id, figure]) => () => figure(document.getElementById(id), page));
if (run) waiting.unshift(() => runFigure(document.getElementById("run"), page, run));
const next = () => {
  waiting.shift()?.();
  if (waiting.length) setTimeout(next, 0);
};
next();
