import { randomBytes } from "node:crypto";
import { createWriteStream, rmSync } from "node:fs";
import path from "node:path";
import { finished } from "node:stream/promises";
import { median, rounded } from "./figures.js";
import { importRows, onStack, type Bench, type BenchOptions, type BenchResult, type Scenario } from "./scenario.js";
import { hammer, putBytes } from "./wire.js";

const connections = 32;
const usualRows = 100_000;
const filler = randomBytes(330).toString("base64");

/** A cluster of 500 bytes as JSON, its id left out. */
const body = (mark: string): object => ({ name: mark, spec: { filler: filler.slice(0, 468 - mark.length) } });

/** `hothot clusters import` of a file against single PUTs, in turns. */
export const bulk: Scenario = {
  name: "bulk",
  what: "rows of 500 bytes: `clusters import` of --rows (100000) in each turn against single PUTs of 32 connections at one owner",
  run: (options) => onStack(options, (bench) => measure(bench, options)),
};

async function measure(bench: Bench, { seconds, runs, rows = usualRows, tell }: BenchOptions): Promise<BenchResult> {
  const [dc = ""] = bench.stack.dcs;
  const url = new URL(bench.stack.url(dc));
  const turns = Math.min(runs, 5);
  const rates = { puts: [] as number[], rows: [] as number[], everywhere: [] as number[] };
  for (let turn = 1; turn <= turns; turn++) {
    // Other ids in each turn: all are created, as those of the import are.
    const ids = bench.idsOf(dc, 20_000 * turn).slice(-20_000);
    const requests = ids.map((id) => putBytes(url, `/v1/clusters/${id}`, body(id)));
    rates.puts.push(await hammer(url, requests, connections, Math.max(1, seconds / 2)));
    const file = path.join(bench.stack.dir, "rows.ndjson");
    await writeRows(file, `t${turn}`, rows);
    const before = await total(bench);
    const began = performance.now();
    await importRows(bench.stack, file);
    const took = performance.now() - began;
    rmSync(file);
    await everywhere(bench, before + rows);
    rates.rows.push((rows * 1000) / took);
    rates.everywhere.push((rows * 1000) / (performance.now() - began));
    tell(`turn ${turn}: ${Math.round(rates.puts.at(-1) ?? 0)} PUT/s, ${Math.round(rates.rows.at(-1) ?? 0)} rows/s`);
  }
  const [puts, imported, all] = [median(rates.puts), median(rates.rows), median(rates.everywhere)];
  const figures = {
    rows,
    putsPerSecond: rounded(puts, 0),
    importedPerSecond: rounded(imported, 0),
    everywherePerSecond: rounded(all, 0),
    ratio: rounded(imported / puts),
  };
  return {
    rows: [
      ["", "rows/s", "ratio"],
      ["single PUTs", figures.putsPerSecond, 1],
      ["import, answered", figures.importedPerSecond, figures.ratio],
      ["import, in every datacenter", figures.everywherePerSecond, rounded(all / puts)],
    ],
    figures,
  };
}

async function writeRows(file: string, mark: string, rows: number): Promise<void> {
  const out = createWriteStream(file);
  for (let at = 0; at < rows; at += 1000) {
    let text = "";
    for (let n = at; n < Math.min(rows, at + 1000); n++)
      text += `${JSON.stringify({ id: `${mark}-${n}`, ...body(`${mark}-${n}`) })}\n`;
    if (!out.write(text)) await new Promise<void>((resolve) => out.once("drain", () => resolve()));
  }
  out.end();
  await finished(out);
}

/** Clusters of all datacenters' copies, the smallest copy's. */
async function total(bench: Bench): Promise<number> {
  const counts = await Promise.all(
    bench.stack.dcs.map((dc) => bench.query(dc, "SELECT count(*)::int AS n FROM clusters")),
  );
  return Math.min(...counts.map(([row]) => Number(row?.["n"])));
}

async function everywhere(bench: Bench, wanted: number): Promise<void> {
  const deadline = performance.now() + 300_000;
  while ((await total(bench)) < wanted) {
    if (performance.now() > deadline) throw new Error("the rows do not arrive everywhere");
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}
