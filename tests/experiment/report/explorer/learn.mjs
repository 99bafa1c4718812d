// Computes a run's network as the page does: node learn.mjs NETWORK.mjs GIVEN.json prints, of each run and choice, the
// scores at points of each level.
import {readFileSync} from "node:fs";
import {pathToFileURL} from "node:url";

const {decoded, networkScore, runLevels} = await import(pathToFileURL(process.argv[2]));
const {runs, points} = JSON.parse(readFileSync(process.argv[3]));
const x = Float64Array.from(points.flat());

console.log(JSON.stringify(runs.map(({levels, network, choices, parts}) => choices.map((choice) => ({
  scores: runLevels(levels).map((level) => Array.from(networkScore(network, choice).at(level)(x, new Float64Array(x.length)))),
  below: Array.from(decoded(choice.density, Uint16Array), (part) => (parts[0] * part) / parts[1]),
})))));
